"""What ended a process that worked on a run, in the words of the record."""

import errno
import re

from igpt.errors import (
    DataCorrupt,
    IgptError,
    NotFound,
    PeerFailed,
    Superseded,
    Unreachable,
    UserError,
)
from igpt.runs.failures import FailureClass

#: How gloo, NCCL and torch's store speak of a rank that has gone, in RuntimeErrors (torch 2.13).
_OF_A_PEER = re.compile(
    r"gloo/transport|(closed|reset) by peer|ncclRemoteError|remote process exit"
    r"|communicator was aborted|collective operation timeout|remote server shutdown",
    re.IGNORECASE,
)


def explain(error: Exception) -> tuple[int, FailureClass | None, str]:
    """Exit code, class and one line for what ended the worker.

    The class is None where the cause is not here: a newer attempt, or a peer that has gone.
    """
    if isinstance(error, Superseded):
        return 6, None, str(error)
    if isinstance(error, Unreachable):
        return 3, FailureClass.STORAGE, str(error)
    if isinstance(error, DataCorrupt):
        return 1, FailureClass.CORRUPT, str(error)
    if isinstance(error, UserError | NotFound):
        return 2, FailureClass.USER_ERROR, str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 3, FailureClass.STORAGE, f"no space left: {error}"
    reason = str(error) if isinstance(error, IgptError) else f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 1, FailureClass.OUT_OF_MEMORY, reason
    if isinstance(error, PeerFailed) or (
        isinstance(error, RuntimeError) and _OF_A_PEER.search(str(error))
    ):
        return 1, None, reason
    return 1, FailureClass.CRASH, reason
