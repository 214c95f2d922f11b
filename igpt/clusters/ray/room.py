"""Room for workers on Ray's nodes, and nodes that are about to be taken away.

Ray 2.60 tells some of it by no public name, so this module alone reads its state, and tests on a
real cluster hold it to account.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import ray
from ray._private import state as ray_state
from ray.util.placement_group import placement_group_table

log = logging.getLogger("igpt")

#: What an attempt has just given back is seen by all within so many seconds.
_SETTLE_SECONDS = 10.0
_TICK = 0.5
#: How often, at most, growth that came to nothing doubles the time to the next look.
_DOUBLINGS = 6


@dataclass
class Size:
    """What a driver knows, from attempt to attempt, of the room there is for its run."""

    hoped: int = 0  # workers that the next attempt can count on; 0: not known
    workers: int = 0  # of the newest attempt
    in_vain: int = 0  # how often in a row the run made way in order to grow, and did not

    def hope(self, workers: int) -> None:
        """The ranks are asked to make way, so that there can be so many."""
        self.hoped = workers

    def begin(self, workers: int) -> None:
        """An attempt begins with so many; one that follows can count on as many."""
        if self.hoped > self.workers > 0:
            self.in_vain = self.in_vain + 1 if workers <= self.workers else 0
        self.workers = self.hoped = workers

    def seconds(self, usual: float) -> float:
        """Until the next look for more room: longer where others were quicker every time."""
        return float(usual * 2 ** min(self.in_vain, _DOUBLINGS))


def workers_for(
    each: Mapping[str, float],
    placement: str,
    least: int,
    most: int,
    goes_on: Callable[[], bool],
    hoped: int = 0,
) -> int:
    """How many workers, from `least` to `most`, there is room for; `least` where there is not.

    goes_on: asked all the time; where it says no the answer is 0. hoped: with so many it begins at
    once, before somebody else takes what the run has just given back.
    """
    found, since = -1, time.monotonic()
    while least < most and time.monotonic() - since < _SETTLE_SECONDS:
        if not goes_on():
            return 0
        now = room_for(each, placement)
        if now >= most or 0 < hoped <= now:
            return min(now, most)
        if now != found:
            log.info("there is room for %d of %d to %d workers", now, least, most)
            found, since = now, time.monotonic()
        time.sleep(_TICK)
    return max(least, min(found, most)) if goes_on() else 0


def room_for(each: Mapping[str, float], placement: str, taken: Collection[str] = ()) -> int:
    """How many more workers, each with these resources, the nodes have room for now.

    placement: Ray's strategy. taken: the nodes that have workers of the run already.
    """
    leaving = draining()
    free = ray_state.available_resources_per_node()  # type: ignore[no-untyped-call]
    fitting = {node: _fits(own, each) for node, own in free.items() if node not in leaving}
    if placement == "STRICT_PACK":  # all on one node
        return 0 if taken else max(fitting.values(), default=0)
    if placement == "STRICT_SPREAD":
        return sum(min(one, 1) for node, one in fitting.items() if node not in taken)
    return sum(fitting.values())


def no_trials(each: Mapping[str, float]) -> str | None:
    """Why a job that spreads by itself, one CPU a trial, beside its worker, never could."""
    there: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = there.get("CPU", 0.0)
    if cpus - each.get("CPU", 0.0) >= 1.0:
        return None
    return (
        f"its trials need a CPU each beside the {each.get('CPU', 0.0):g} of its worker, and the"
        f" cluster has {cpus:g}: set cpus_per_worker in the cluster file to 1, or add nodes"
    )


def others_wait() -> bool:
    """Whether somebody has asked for room and not got it yet."""
    table = placement_group_table()
    return any(group.get("state") == "PENDING" for group in table.values())


def draining() -> set[str]:
    """The ids of the nodes that are being drained: those who took them will soon end them."""
    return set(ray_state.state.get_draining_nodes())


def _fits(free: Mapping[str, float], each: Mapping[str, float]) -> int:
    """Ray counts in ten thousandths, so that tenths add up."""
    return min(
        round(free.get(name, 0.0) * 10_000) // round(amount * 10_000)
        for name, amount in each.items()
    )
