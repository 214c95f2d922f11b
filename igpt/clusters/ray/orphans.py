"""Ranks that have outlived the Ray worker that was their parent: they save, and hold the devices.

A new attempt waits for them, or their memory would be wanted twice. They end by themselves, at the
latest when their grace is over.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from igpt.clusters.ranks.exits import read_exits
from igpt.clusters.ray.rank import Meeting, read_meeting
from igpt.errors import NotFound
from igpt.runs import Run
from igpt.runs.attempts import attempt_numbers
from igpt.storage.patience import insist

log = logging.getLogger("igpt")

#: For the nodes to answer, each time.
_ANSWER_SECONDS = 30.0
_PAUSE = 1.0


def wait_for_orphans(run: Run, attempt: int, seconds: float, goes_on: Callable[[], bool]) -> None:
    """Returns when no rank of an earlier attempt is left on this cluster, or after so long."""
    before = _silent_before(run, attempt)
    if before is None:
        return
    deadline = time.monotonic() + seconds
    while goes_on() and time.monotonic() < deadline:
        count = _living(before)
        if not count:
            return
        log.info("%d ranks of an earlier attempt are still saving", count)
        time.sleep(_PAUSE)


def _silent_before(run: Run, attempt: int) -> Meeting | None:
    """The meeting of the newest earlier attempt on Ray, if not all of its ranks gave account."""
    earlier = [one for one in insist(partial(attempt_numbers, run.record)) if one < attempt]
    for number in reversed(earlier):
        try:
            meeting = insist(partial(read_meeting, run, number))
        except NotFound:
            continue
        except (KeyError, TypeError):  # of another kind of cluster
            return None
        ranks = range(len(meeting.places))
        silent = [one for one in ranks if insist(partial(read_exits, run, number, one)) is None]
        return meeting if silent else None
    return None


def _living(meeting: Meeting) -> int:
    """How many ranks of a launch there are on the nodes that are left; none where they are mute."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = {str(node["NodeID"]) for node in known if node["Alive"]}
    task = ray.remote(num_cpus=0, max_retries=0)(ranks_of)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            meeting.launch
        )
        for node in sorted({place.node for place in meeting.places} & alive)
    ]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_SECONDS)
    try:
        return sum(ray.get(answered))
    except ray.exceptions.RayError as error:
        log.warning("a node does not say which ranks it has: %s", error)
        return 0


def ranks_of(launch: str) -> int:
    """On a node: how many processes there are of a launch's ranks."""
    word = f"IGPT_LAUNCH={launch}".encode()
    count = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                count += word in (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # gone, or not ours
                continue
    return count
