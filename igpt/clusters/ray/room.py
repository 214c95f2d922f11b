"""Room for workers on Ray's nodes, and nodes that are about to be taken away.

Ray 2.60 tells some of it by no public name, so this module alone reads its state, and tests on a
real cluster hold it to account.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping

from ray._private import state as ray_state
from ray.util.placement_group import placement_group_table

log = logging.getLogger("igpt")

#: What an attempt has just given back is seen by all within so many seconds.
_SETTLE_SECONDS = 10.0
_TICK = 0.5


def workers_for(
    each: Mapping[str, float],
    placement: str,
    least: int,
    most: int,
    goes_on: Callable[[], bool],
) -> int:
    """How many workers, from `least` to `most`, there is room for; `least` where there is not.

    goes_on: asked all the time; where it says no the answer is 0.
    """
    found, since = -1, time.monotonic()
    while least < most and time.monotonic() - since < _SETTLE_SECONDS:
        if not goes_on():
            return 0
        now = room_for(each, placement)
        if now >= most:
            return most
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
