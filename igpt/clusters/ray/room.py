"""What Ray says of its nodes: room for more workers, and nodes that are about to be taken away.

Ray 2.60 tells neither by a public name, so this module alone reads its state, and a test on a real
cluster holds it to account.
"""

from collections.abc import Mapping

from ray._private import state as ray_state


def room_for(each: Mapping[str, float]) -> int:
    """How many more workers, each with these resources, the nodes have room for now."""
    leaving = draining()
    free = ray_state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return sum(_fits(own, each) for node, own in free.items() if node not in leaving)


def draining() -> set[str]:
    """The ids of the nodes that are being drained: those who took them will soon end them."""
    return set(ray_state.state.get_draining_nodes())


def _fits(free: Mapping[str, float], each: Mapping[str, float]) -> int:
    return int(min(free.get(name, 0.0) // amount for name, amount in each.items() if amount > 0))
