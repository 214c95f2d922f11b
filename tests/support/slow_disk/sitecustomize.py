"""What `tests.support.slow` lets every Python of a test's runs do first."""

import os
import sys
import time

_SECONDS = float(os.environ.get("SLOW_DISK", "0"))


def _wait(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.rename" and str(arguments[1]).endswith("/progress-0.json"):
        time.sleep(_SECONDS)


if _SECONDS:
    sys.addaudithook(_wait)
