"""What the driver does while an attempt is worked on: signs of life, drained nodes, growth."""

import logging
import time
from collections.abc import Callable
from functools import partial

import ray.exceptions

from igpt.clusters.ranks.requests import DELETED, FENCED, ask_to_stop
from igpt.clusters.ray.config import RayCluster
from igpt.clusters.ray.rank import Meeting, read_meeting
from igpt.clusters.ray.room import Size, draining, others_wait, room_for
from igpt.errors import IgptError, NotFound
from igpt.runs import Run

log = logging.getLogger("igpt")

#: Begins the reason for which a node is left.
DRAINED = "is being drained"

#: Beyond their grace, until workers that do not come back are ended by force.
_PATIENCE_SECONDS = 60.0
#: Seconds between looks at nodes that are about to be taken away.
_DRAIN_SECONDS = 2.0
#: So long there has to be room for more before the ranks make way: what others just start is gone.
_SURE_SECONDS = 4.0


class Watch:
    """One attempt, as its driver sees it. may_grow: whether more workers than now are wanted."""

    def __init__(self, run: Run, attempt: int, cluster: RayCluster, size: Size) -> None:
        self.run = run
        self.attempt = attempt
        self.cluster = cluster
        self.size = size
        self.may_grow = False
        self.meeting: Meeting | None = None
        self.asked: str | None = None  # why the ranks were asked to stop, by us
        self._wanted: str | None = None  # why they are to be asked
        self._ordered: float | None = None  # since when the run is to stop
        self._gone = False  # the record is another's, or deleted: nothing is written any more
        self.waits_for = cluster.wanted
        self._due: dict[str, float] = {}
        self._room_since: float | None = None  # for more workers, seen without a break

    @property
    def lost_patience(self) -> bool:
        """Whether it was to stop, and had all the time that it needs."""
        if self._ordered is None:
            return False
        grace = self.cluster.grace_seconds + _PATIENCE_SECONDS if self.meeting else 0.0
        return time.monotonic() - self._ordered > grace

    def look(self, reason: str | None) -> None:
        """Looks at all that is due. reason: why the run is to stop, if it is."""
        if reason is not None and self._ordered is None:
            self._ordered = time.monotonic()
            self._gone = reason in (DELETED, FENCED)  # which the ranks find by themselves
            self._wanted = self._wanted or reason
        if self._wanted is not None and self.asked is None and not self._gone:
            self.ask(self._wanted)  # again and again, where the store is away
        if self.meeting is None:
            self.find_meeting()
        elif self._wanted is None:
            self.consider(self.meeting)

    def beat(self) -> None:
        """Before the workers are there, the sign of life is ours."""
        if self._every("beat", self.cluster.heartbeat_seconds / 2) and not self._gone:
            wanted = {"waiting_for": f"room: {self.waits_for}"}
            self._write(partial(self.run.beat, self.attempt, "queued", wanted))

    def find_meeting(self) -> None:
        """Finds out whether the workers are there."""
        if not self._every("meeting", 1.0):
            return
        try:
            self.meeting = read_meeting(self.run, self.attempt)
            self._due["resize"] = time.monotonic() + self._resize_seconds
        except NotFound:
            self.beat()
        except IgptError as error:
            log.warning("%s", error)

    def consider(self, meeting: Meeting) -> None:
        """Wants the ranks to make way, where a node is drained or there is room for more."""
        try:
            if self._every("drain", _DRAIN_SECONDS):
                self.make_way(meeting)
            if self.may_grow and self._every("resize", self._resize_seconds):
                self.grow(meeting)
        except (ray.exceptions.RayError, RuntimeError) as error:
            log.warning("Ray cannot be asked: %s", error)

    def make_way(self, meeting: Meeting) -> None:
        """Where a node of theirs is about to be taken away, the ranks are to save."""
        leaving = draining()
        hosts = {place.host for place in meeting.places if place.node in leaving}
        if hosts:
            self._wanted = f"{', '.join(sorted(hosts))} {DRAINED}"

    def grow(self, meeting: Meeting) -> None:
        """Where there is room for more ranks, and nobody else waits for it, they are to save.

        What is seen once may be gone the next second, so it is looked at again soon.
        """
        now = len(meeting.places)
        nodes = {place.node for place in meeting.places}
        room = room_for(self.cluster.each(), self.cluster.placement, nodes)
        possible = min(self.cluster.most_workers, now + room)
        if possible <= now or others_wait() or not self._has_moved():
            self._room_since = None
            return
        since = self._room_since = self._room_since or time.monotonic()
        sure = min(_SURE_SECONDS, self.cluster.resize_seconds)
        if time.monotonic() - since < sure:
            self._due["resize"] = time.monotonic() + sure / 4
            return
        self.size.hope(possible)
        self._wanted = f"there is room for {possible} workers, {now} are at work"

    def ask(self, reason: str) -> None:
        """Makes the ranks save and stop."""
        try:
            ask_to_stop(self.run, self.attempt, reason)
        except IgptError as error:
            log.warning("%s", error)
            return
        log.info("asked the ranks to stop: %s", reason)
        self.asked = reason

    @property
    def _resize_seconds(self) -> float:
        return self.size.seconds(self.cluster.resize_seconds)

    def _has_moved(self) -> bool:
        """Whether this attempt has made a step: else it would do nothing but start."""
        try:
            beat = self.run.heartbeat()
        except IgptError as error:
            log.warning("%s", error)
            return False
        return beat is not None and beat.phase == "running" and "loss" in beat.progress

    def _write(self, action: Callable[[], object]) -> None:
        try:
            action()
        except IgptError as error:
            log.warning("%s", error)

    def _every(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + seconds
        return True
