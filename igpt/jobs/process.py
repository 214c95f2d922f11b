"""What a rank is to the system: the signals it takes, its parent, and its end."""

import atexit
import ctypes
import logging
import math
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn


class StopFlag:
    """Set by USR2 or TERM, read by the loop. The handler does nothing else.

    grace: seconds from then on until whoever asked kills this process.
    """

    def __init__(self, grace: float = math.inf) -> None:
        self.set = False
        self._grace = grace
        self._asked: float | None = None

    def __call__(self) -> bool:
        return self.set

    def time_left(self) -> float:
        """Seconds until this process is killed; without limit where it was not asked to stop."""
        return math.inf if self._asked is None else self._asked + self._grace - time.monotonic()

    def install(self) -> None:
        """Takes the signals that may come to a rank."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGUSR2, self._handle)
        # Meant for our parent; Slurm sends it to every process of a job.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.set = True
        self._asked = self._asked or time.monotonic()
        if _is_orphan():
            # Nobody is left who would kill it when its grace is over, wherever it may be stuck.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, float(os.environ.get("IGPT_GRACE", "120")))


def end_with_parent() -> None:
    """Asks the kernel for TERM when the parent dies, so that no rank trains on unwatched."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if _is_orphan():
            os.kill(os.getpid(), signal.SIGTERM)


def _is_orphan() -> bool:
    """Whether the parent that started this rank is gone."""
    expected = os.environ.get("IGPT_PARENT")
    return bool(expected) and os.getppid() != int(expected or 0)


def leave(code: int) -> NoReturn:
    """Ends the process without taking the interpreter apart.

    While it is taken apart, a thread of torch's may ask for its lock and abort the process, and a
    TERM that comes late ends it by default: in both cases the parent would see a killed rank, whose
    work is done and saved. (Seen with torch 2.13, in one of some twenty ranks that stopped.) So
    would the end of NCCL's group, which waits for peers that may never come.
    """
    try:
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
