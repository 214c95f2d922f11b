"""What is asked of whoever looks after an attempt: by signal at once, by the record now and then.

To cancel is a word in the record, so that it works from any machine. TERM, INT and, where the
cluster sends it, USR2 mean that this machine or this job is about to end: save, and go on later.
USR1 means: look at the record now.
"""

import json
import logging
import math
import signal
import time
from collections.abc import Collection
from types import FrameType

from igpt.errors import IgptError
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import superseded
from igpt.runs.reading import read_json
from igpt.runs.state import cancel_requested, overtaken

log = logging.getLogger("igpt")

#: Reasons to stop that leave no time to save. The run's record is gone: write nothing more.
DELETED = "deleted"
#: A newer attempt has claimed the run: write nothing more either.
FENCED = "a newer attempt owns the run"
#: Ranks of another node have ended badly: those here can only wait for them in vain.
PEERS = "the ranks of another node have ended"
#: Another node has found that the run makes no step.
HANG = "no step is made"


def hang_key(attempt: int) -> str:
    """Where node 0 says that no step is made any more."""
    return f"attempts/{attempt:04d}/hang.json"


def stop_key(attempt: int) -> str:
    """Where a supervisor far from the ranks asks them to save and stop, and says why."""
    return f"attempts/{attempt:04d}/stop.json"


def ask_to_stop(run: Run, attempt: int, reason: str) -> None:
    """Makes the ranks of an attempt save and stop, wherever they are, within seconds."""
    body = {"time": time.time(), "reason": reason}
    run.record.create(stop_key(attempt), json.dumps(body).encode())


class Requests:
    """The requests of one attempt at a time.

    seconds: from one look at the record to the next. bad_news: names of objects in the
    attempt's folder that say, by being there, that the ranks of another node have ended badly;
    None where the run's supervisor is this process, and nobody else says anything there.
    signals: whether they are ours to handle; they cannot be outside the main thread.
    """

    def __init__(
        self,
        run: Run,
        seconds: float,
        *,
        bad_news: Collection[str] | None = None,
        signals: bool = True,
    ) -> None:
        self._run = run
        self._seconds = seconds
        self._bad_news = bad_news
        self._stop: str | None = None  # what the supervisor asks for, in the attempt's folder
        self._looked = -math.inf  # the first look is at once: much may have been asked before us
        self._woken = False
        self._fenced: int | None = None
        self._found: str | None = None  # what the record says, that leaves no time to save
        self.terminating = False
        self.cancelling = False
        if signals:
            self.listen()

    def listen(self) -> None:
        """Takes the signals; once more after something else, such as Ray, has taken them."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._terminate)
        signal.signal(signal.SIGUSR1, self._wake)

    def of(self, attempt: int) -> str | None:
        """Why the attempt should stop, if it should."""
        if time.monotonic() - self._looked > self._seconds or self._woken:
            self._looked, self._woken = time.monotonic(), False
            try:
                self._look(attempt)
            except IgptError as error:
                log.warning("%s", error)
        if self._found is not None:
            return self._found
        if self._fenced == attempt:
            return FENCED
        if self.cancelling:
            return "cancelled"
        return "terminating" if self.terminating else self._stop

    def _look(self, attempt: int) -> None:
        record = self._run.record
        history = self._run.events(ev.LIFE)
        self.cancelling = cancel_requested(history)
        if not record.exists("spec.yaml"):
            self._found = DELETED
        elif self._bad_news is not None:
            names = set(record.children(f"attempts/{attempt:04d}"))
            # First the hang: it is the reason for which ranks of other nodes end.
            if hang_key(attempt).rpartition("/")[2] in names:
                self._found = HANG
            elif names & set(self._bad_news):
                self._found = PEERS
            elif stop_key(attempt).rpartition("/")[2] in names:
                self._stop = str(read_json(record, stop_key(attempt))["reason"])
        if self._bad_news is None and overtaken(history, attempt):
            self._stop = "a later attempt is launched"
        if superseded(record, attempt):
            self._fenced = attempt

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminating = True

    def _wake(self, number: int, frame: FrameType | None) -> None:
        self._woken = True
