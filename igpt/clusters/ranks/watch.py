"""The parent process of a node's ranks: starts them, ships their output, keeps the heartbeat.

It stands between the ranks and the store so that the last lines of a killed rank survive, and so
that a store that is away for a while costs no step: what cannot be shipped now is kept and tried
again. It is the same on every kind of cluster; who asks it to stop, and what follows, is not.
"""

import contextlib
import json
import logging
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from igpt.clusters.ranks.exits import write_exits
from igpt.clusters.ranks.memory import MemoryWatch
from igpt.clusters.ranks.output import RankOutput
from igpt.clusters.ranks.progress import Onlooker, Show, read_progress
from igpt.clusters.ranks.requests import DELETED, FENCED, HANG, PEERS, hang_key
from igpt.clusters.ranks.scratch import scratch_folder
from igpt.clusters.ranks.start import START_SECONDS, Ranks, send, start
from igpt.errors import IgptError
from igpt.jobs import stacks
from igpt.jobs.context import progress_file
from igpt.runs import Run
from igpt.runs.attempts import superseded
from igpt.runs.failures import REQUEUE, FailureClass, RankExit

log = logging.getLogger("igpt")

_TICK = 0.1  # seconds between looks at the ranks
_SHIP_SECONDS = 1.0  # between shipments of new output
_SAMPLE_SECONDS = 1.0  # between looks at the memory
_SETTLE_SECONDS = 5.0  # for the other ranks to end by themselves after one ended badly
_KILLED_SECONDS = 30.0  # for killed ranks to be gone
_DUMP_SECONDS = 2.0  # for stacks to be written
_PEERS_SECONDS = 8.0  # for the other nodes to see that no step is made, and to ask their ranks


def run_ranks(
    run: Run,
    attempt: int,
    ranks: Ranks,
    asked_to_stop: Callable[[], str | None],
    *,
    show: Show | None = None,
) -> list[RankExit]:
    """Starts the ranks of an attempt, watches them to their end, returns how each ended, in order.

    asked_to_stop: looked at all the time; a reason asks the ranks to stop, with their grace.
    show: called with rank and progress of each rank here that has moved on, with each heartbeat
        and at the end, unless a newer attempt owns the run; its exceptions are only logged.
    """
    with scratch_folder() as (scratch, hold):
        watch = _Watch(run, attempt, ranks, scratch, hold, show)
        try:
            exits = watch.to_the_end(asked_to_stop)
        finally:
            watch.kill()
        watch.fenced = watch.fenced or asked_to_stop() in (DELETED, FENCED)
        watch.finish()
        return exits


class _Watch:
    """The ranks of one attempt on this node, from their start to their end."""

    def __init__(
        self,
        run: Run,
        attempt: int,
        ranks: Ranks,
        scratch: Path,
        hold: int,
        show: Show | None,
    ) -> None:
        self.run = run
        self.attempt = attempt
        self.ranks = ranks
        self.scratch = scratch
        self.memory = MemoryWatch()
        self.onlooker = Onlooker(scratch, self.numbers, show) if show else None
        self.processes = [
            start(run, attempt, number, ranks, scratch, hold) for number in self.numbers
        ]
        self.outputs = [
            RankOutput(run, attempt, number, process.stdout)
            for number, process in zip(self.numbers, self.processes, strict=True)
            if process.stdout is not None
        ]
        self.exits: dict[int, RankExit] = {}
        self.kill_at: float | None = None
        self.stopping = False
        self.killed = False
        self.hung: str | None = None  # what the ranks did when no step was made any more
        self.fenced = False  # a newer attempt owns the run
        self.away = False  # the store was, when it was last asked
        self.moved = time.monotonic()  # when the last step was made
        self.seen: float | None = None
        self.due: dict[str, float] = {}

    @property
    def numbers(self) -> range:
        """The ranks of this node."""
        return range(self.ranks.first, self.ranks.first + self.ranks.workers)

    def to_the_end(self, asked_to_stop: Callable[[], str | None]) -> list[RankExit]:
        """Watches until all have ended; in the order in which they did."""
        while len(self.exits) < len(self.processes):
            now = time.monotonic()
            self.collect(now)
            if not self.stopping and (reason := asked_to_stop()):
                log.info("stopping the ranks: %s", reason)
                self.stopping = True
                self.stop(reason, now)
            if self.kill_at is not None and now > self.kill_at:
                self.killed = True
                self.kill()
            if self._every("memory", _SAMPLE_SECONDS, now):
                self.memory.sample(self.alive())
            if self._every("ship", _SHIP_SECONDS, now):
                self.write(self.ship)
            if self._every("beat", self.ranks.heartbeat_seconds, now):
                if self.ranks.node == 0:
                    self.write(self.beat)
                    self.look_for_progress(now)
                self.show()
            time.sleep(_TICK)
        return list(self.exits.values())

    def collect(self, now: float) -> None:
        """Notes the ranks that have ended."""
        for number, process in zip(self.numbers, self.processes, strict=True):
            if number in self.exits or process.poll() is None:
                continue
            self.exits[number] = self._exit(number, process)
            if process.returncode not in (0, REQUEUE):
                self._kill_by(now + _SETTLE_SECONDS)

    def stop(self, reason: str, now: float) -> None:
        """Asks the ranks to stop, with the time that the reason leaves them."""
        if reason == HANG:
            self.dump()
            return
        self.fenced = self.fenced or reason in (FENCED, DELETED)
        hurry = {DELETED: 0.0, FENCED: _SETTLE_SECONDS, PEERS: _SETTLE_SECONDS}
        grace = hurry.get(reason, self.ranks.grace_seconds)
        self._kill_by(now + grace)
        for process in self.processes:
            send(process, signal.SIGTERM)

    def look_for_progress(self, now: float) -> None:
        """Finds a run that makes no step, and makes its ranks say where they are."""
        with contextlib.suppress(FileNotFoundError):
            changed = progress_file(self.scratch, 0).stat().st_mtime
            if changed != self.seen:
                self.seen, self.moved = changed, now
        limit = self.ranks.hang_seconds
        if limit is not None and self.seen is None:
            limit += START_SECONDS
        if limit is not None and now - self.moved > limit and self.hung is None:
            why = f"no step for {now - self.moved:.0f} s"
            body = json.dumps({"time": time.time(), "reason": why}).encode()
            self.write(lambda: self.run.record.put(hang_key(self.attempt), body))
            self.dump(why)
            if self.ranks.nodes > 1:  # the ranks of other nodes are to be asked as they stand
                self.kill_at = time.monotonic() + _PEERS_SECONDS

    def dump(self, why: str = "") -> None:
        """Every rank's Python stacks into its log; then they are killed.

        Where there are other nodes, the account of this one is given first: the scheduler may leave
        its parent no time for that once the ranks of another node have ended.
        """
        if self.hung is not None:
            return
        found = [why] if why else []
        silent = stacks.ask(self.alive())
        time.sleep(_DUMP_SECONDS)
        for number, process in zip(self.numbers, self.processes, strict=True):
            if process.pid in silent:
                found.append(f"rank {number} {silent[process.pid]}")
        places = {
            number: place
            for number, output in zip(self.numbers, self.outputs, strict=True)
            if (place := stacks.summary(output.tail()))
        }
        if places and not silent:
            # The others wait for it where they all are.
            odd = min(places, key=lambda number: Counter(places.values())[places[number]])
            found.append(f"rank {odd} {places[odd]}")
        self.hung = "; ".join(found)
        log.warning("%s; the stacks of all ranks are in their logs", self.hung)
        if self.ranks.nodes > 1:
            self.write(self.give_account)
        self.kill_at = time.monotonic()

    def give_account(self) -> None:
        """Says how the ranks here will have ended: those at work will be killed for their hang."""
        killed = [
            RankExit(number, -signal.SIGKILL, FailureClass.HANG, self.hung or "")
            for number in self.numbers
            if number not in self.exits
        ]
        exits = [*self.exits.values(), *killed]
        write_exits(self.run, self.attempt, self.ranks.node, exits, bad=True)

    def alive(self) -> list[int]:
        """The process ids of the ranks that have not ended."""
        return [process.pid for process in self.processes if process.returncode is None]

    def kill(self) -> None:
        """Ends every rank and all it started.

        One that waits inside the kernel, for a driver or a file system, cannot be killed: it is
        given up, as the others' devices and the rest of the time limit would be held for it.
        """
        for process in self.processes:
            send(process, signal.SIGKILL)
        until = time.monotonic() + _KILLED_SECONDS
        for number, process in zip(self.numbers, self.processes, strict=True):
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                reason = f"rank {number} cannot be killed: it waits inside the kernel"
                log.error("%s (process %d)", reason, process.pid)
                stuck = RankExit(number, -signal.SIGKILL, FailureClass.HANG, reason)
                self.exits.setdefault(number, stuck)

    def ship(self, *, all_of_it: bool = False) -> None:
        """Writes what has come from every rank."""
        for output in self.outputs:
            output.ship(all_of_it=all_of_it)

    def beat(self) -> None:
        """The sign of life, with what rank 0 said last."""
        self.run.beat(self.attempt, "running", read_progress(self.scratch, 0))

    def show(self) -> None:
        """What is new of the progress, to whoever looks on."""
        if self.onlooker is not None and not self.fenced:
            self.onlooker.look()

    def finish(self) -> None:
        """The last lines, and the last sign of life."""
        for output in self.outputs:
            output.finish()
        self.write(lambda: self.ship(all_of_it=True))
        if self.ranks.node == 0:
            self.write(self.beat)
        self.show()

    def write(self, action: Callable[[], object]) -> None:
        """Writes into the record. A store that is away must not end the ranks: it is tried again.

        Once a newer attempt owns the run nothing is written any more, and one that took it while
        the store could not be reached is looked for first.
        """
        try:
            if self.away:
                self.fenced = self.fenced or superseded(self.run.record, self.attempt)
            self.away = False
            if not self.fenced:
                action()
        except IgptError as error:
            self.away = True
            log.warning("%s", error)

    def _kill_by(self, moment: float) -> None:
        self.kill_at = min(self.kill_at or float("inf"), moment)

    def _every(self, what: str, seconds: float, now: float) -> bool:
        if now < self.due.get(what, 0.0):
            return False
        self.due[what] = now + seconds
        return True

    def _exit(self, number: int, process: "subprocess.Popen[bytes]") -> RankExit:
        """How a rank ended, with what it said itself where it could."""
        code = process.returncode
        # TERM is a request that a rank may be too far gone to have understood.
        torn_down = code < 0 and (self.killed or (self.stopping and code == -signal.SIGTERM))
        if self.hung is not None:
            return RankExit(number, code, FailureClass.HANG, self.hung, torn_down)
        try:
            said = json.loads((self.scratch / f"failure-{number}.json").read_text())
        except FileNotFoundError:
            if code == -signal.SIGKILL and not torn_down:
                verdict = self.memory.verdict(process.pid)
                if verdict is not None:
                    reason = f"rank {number} {verdict.reason}"
                    return RankExit(number, code, FailureClass.OUT_OF_MEMORY, reason)
            return RankExit(number, code, torn_down=torn_down)
        failure = FailureClass(said["class"]) if said["class"] else None
        return RankExit(number, code, failure, said["reason"], torn_down)
