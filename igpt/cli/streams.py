"""The standard streams: any of them may be closed, full, or read by nobody any more.

Messages for people are a courtesy: where nobody takes them, the verb goes on without. What was
asked for, on standard output, is the verb's work: where it is lost, the verb fails.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from igpt.errors import UserError


def open_all() -> None:
    """Opens the streams that the shell has closed (`2>&-`), on nothing."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def say(text: str) -> None:
    """A message for people, to standard error."""
    try:
        print(text, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        silence(sys.stderr)


@contextmanager
def output() -> Iterator[None]:
    """Around what writes to standard output. Raises UserError where that is full, for example."""
    try:
        yield
    except BrokenPipeError:  # whoever reads has seen enough, which is no mistake
        raise
    except OSError as error:
        silence(sys.stdout)
        raise UserError(
            f"standard output cannot be written: {error.strerror}",
            mend="Send it to another place, or to /dev/null",
        ) from None


def silence(stream: IO[str]) -> None:
    """Lets nothing more of a stream be seen; what could not be written would fail again at exit."""
    with suppress(OSError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
