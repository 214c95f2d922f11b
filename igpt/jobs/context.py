"""What an entry function is handed: the run, its rank, the stop flag, and where to report."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igpt.errors import IgptError, Unreachable
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import Claim, superseded
from igpt.runs.events import write_event
from igpt.storage import Store
from igpt.storage.patience import Patience

#: How long a rank waits for its peers in an exchange where its parent does not say.
EXCHANGE_SECONDS = 1800.0
#: Metric lines wait at most this long before they are written as a part of their own.
FLUSH_SECONDS = 10.0
#: And this long between tries while the store is away: a try may take a minute, which steps lack.
LONGEST_PAUSE = 300.0
#: More lines are not kept in memory for a store that is away.
MOST_LINES = 100_000
#: The log gets a line of progress this often.
LOG_SECONDS = 10.0

log = logging.getLogger("igpt")


class Stopped(IgptError):
    """The entry stopped because it was asked to, with its work saved: start it again."""


class RunSink:
    """Reports of a worker: metrics and events into the run, progress to the parent process.

    Implements the `Sink` of igpt.training. Metrics become immutable parts named by their first
    step; `flush` returns when they are durable. A store that is away for a while keeps them in
    memory, and ends no work. Only rank 0 logs progress.
    """

    def __init__(self, run: Run, attempt: int, scratch: Path | None, rank: int) -> None:
        self._run = run
        self._attempt = attempt
        self._scratch = scratch
        self._rank = rank
        self._pending: list[dict[str, object]] = []
        self._events: list[tuple[float, str, dict[str, object]]] = []
        self._due = time.monotonic() + FLUSH_SECONDS  # when the store is tried next
        self._patience = Patience(first=FLUSH_SECONDS, longest=LONGEST_PAUSE)
        self._logged = 0.0
        self._said: tuple[object, ...] = ()  # how far, by the last line of the log
        self._lock = threading.Lock()  # of what is pending; never held while the store is asked
        self._writing = threading.Lock()

    def metrics(self, lines: list[dict[str, object]]) -> None:
        """Adds lines, each with its `step`, in the order of steps.

        Raises Unreachable where they have waited for the store too long, or become too many.
        """
        with self._lock:
            self._pending += lines
        if time.monotonic() > self._due:
            self._try()

    def flush(self) -> None:
        """Writes what is pending. Raises Unreachable where the store is away; nothing is lost."""
        with self._writing:
            self._write()

    def event(self, kind: str, **fields: object) -> None:
        """Adds an event of this attempt, and says so in the log. Raises as `metrics`."""
        log.info("%s %s", kind, "  ".join(f"{name} {value}" for name, value in fields.items()))
        with self._lock:
            self._events.append((time.time(), kind, fields))
        if not self._patience.waiting:
            self._try(events_alone=True)

    def _try(self, *, events_alone: bool = False) -> None:
        """Writes, unless another thread is at it; a store that is away is tried again later."""
        if not self._writing.acquire(blocking=False):
            return
        try:
            self._write(events_alone=events_alone)
        except Unreachable as error:
            self._due = time.monotonic() + self._patience.pause(error)
            if len(self._pending) > MOST_LINES:
                raise
            log.warning("metrics and events are kept until the store is there: %s", error)
        finally:
            self._writing.release()

    def _write(self, *, events_alone: bool = False) -> None:
        """What is pending, forgotten once it is durable. The caller holds `_writing`."""
        with self._lock:
            events = list(self._events)
            lines = [] if events_alone else list(self._pending)
        for moment, kind, fields in events:
            own = {"attempt": self._attempt, **fields}
            write_event(self._run.record, kind, writer="worker", time=moment, **own)
            with self._lock:
                del self._events[0]
        if lines:
            # The suffix keeps a part apart from one that begins with the same step: a validation's
            # line carries the step of the training line before it.
            suffix = "-validation" if "validation_loss" in lines[0] else ""
            key = f"attempts/{self._attempt:04d}/metrics-{lines[0]['step']:09d}{suffix}.jsonl"
            text = "".join(json.dumps(line) + "\n" for line in lines)
            self._run.record.put(key, text.encode())
            with self._lock:
                del self._pending[: len(lines)]
        self._patience.reset()
        if not events_alone:
            self._due = time.monotonic() + FLUSH_SECONDS

    def progress(self, **fields: object) -> None:
        """Replaces what the parent knows of this rank; rank 0's is what the heartbeat shows.

        done, total, unit: how far the work is. Others as the job likes, such as loss (nats per
        token) and tokens_per_second. Now and then the log gets a line.
        """
        far = (fields.get("done"), fields["total"], fields.get("unit"))
        due = far[0] == far[1] or time.monotonic() - self._logged > LOG_SECONDS
        if self._rank == 0 and due and far != self._said:  # who waits repeats himself
            self._logged, self._said = time.monotonic(), far
            log.info("%s", progress_line(fields))
        if self._scratch is not None:
            write_beside(progress_file(self._scratch, self._rank), fields)

    def alive(self) -> None:
        """Tells the parent that the work goes on, where there is no progress to tell of."""
        if self._scratch is not None:
            with suppress(FileNotFoundError):
                os.utime(progress_file(self._scratch, self._rank))

    def superseded(self) -> bool:
        """Whether a newer attempt has claimed the run."""
        return superseded(self._run.record, self._attempt)


@dataclass(frozen=True)
class Context:
    """A worker's place in the world."""

    run: Run
    claim: Claim
    rank: int
    world_size: int
    local_rank: int
    stop: Callable[[], bool]
    sink: RunSink
    time_left: Callable[[], float] = lambda: math.inf  # seconds, once it was asked to stop
    exchange_seconds: float = EXCHANGE_SECONDS  # that it waits for its peers; then it fails

    @property
    def root(self) -> Store:
        """The whole store."""
        return self.run.root

    @property
    def attempt(self) -> int:
        """The number of this attempt."""
        return self.claim.attempt

    def keeps_pieces(self, place: Store) -> None:
        """For work that is saved piece by piece, before it begins: `place` is for what is finished.

        An attempt after which it holds more objects than before has got on, however it ended. Work
        that neither says this nor saves checkpoints is given up when it is stopped again and again.
        """
        if self.rank == 0:
            self.sink.event(ev.PIECES, place=place.uri, there=len(place.objects()))

    def check_stop(self) -> None:
        """For work that is saved piece by piece: raises Stopped when asked to stop."""
        if self.stop():
            raise Stopped("stopped as asked; finished pieces are kept")


def progress_file(scratch: Path, rank: int) -> Path:
    """Where a rank says to its parent how far it is."""
    return scratch / f"progress-{rank}.json"


def progress_line(fields: Mapping[str, Any]) -> str:
    """Progress for people: `steps 120/2000  loss 3.1415  20,480 tokens/s`."""
    parts = [f"{fields['unit']} {fields['done']:,}/{fields['total']:,}"] if "done" in fields else []
    if (loss := fields.get("loss")) is not None:
        parts.append(f"loss {loss:.4f}")
    if (rate := fields.get("tokens_per_second")) is not None:
        parts.append(f"{rate:,.0f} tokens/s")
    return "  ".join(parts)


def write_beside(path: Path, body: dict[str, Any]) -> None:
    """Replaces a small local file whole, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(body))
    temporary.replace(path)
