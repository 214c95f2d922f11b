"""A process that works on a run executes the code of its submission, whatever else is installed.

Whoever starts one puts the unpacked snapshot first on PYTHONPATH and names its folder in IGPT_CODE.
Python passes over a folder that is gone, as from a scratch disk that is cleaned of old files, and
takes the next `igpt` that it finds: the working tree as it is today.
"""

import logging
import os
import sys
from pathlib import Path

from igpt.errors import NotFound, UserError
from igpt.runs import snapshot
from igpt.storage import Store

log = logging.getLogger("igpt")

#: `<folder>/<digest>`; empty or missing where the installed package is to run.
CODE = "IGPT_CODE"
_AGAIN = "IGPT_CODE_AGAIN"  # this process has been started again already


def insist_on_code(root: Store) -> None:
    """Returns in a process that runs the code it is to run; else starts it again with that.

    Code that is missing is unpacked from the store. To be called first: the process keeps its id
    and its environment, and nothing else. Raises UserError where the store has lost the code too,
    or something else stands before it on Python's path; Unreachable and DataCorrupt.
    """
    named = os.environ.get(CODE)
    again = os.environ.pop(_AGAIN, None) is not None
    running = Path(__file__).resolve().parents[2]
    if not named or running == Path(named).resolve():
        return
    if again:
        raise UserError(
            f"the code that runs is that in {running}",
            expected=f"that of the submission, in {named}",
            mend="Look at what `setup` and `python` of the cluster file do to PYTHONPATH",
        )
    folder = Path(named)
    try:
        snapshot.unpack(root, folder.name, folder.parent)
    except NotFound as gone:
        raise UserError(
            f"the code of the submission is gone from {folder}, and {gone.what}",
            mend="igpt-jobs resume RUN --new-code goes on with the code as it is now",
        ) from None
    log.warning("the code of the submission was not in %s; it is unpacked again", folder)
    os.environ[_AGAIN] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 the same program
