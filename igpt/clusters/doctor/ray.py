"""Has every node of a Ray cluster examine itself: one job, whose output is read as it comes.

The job goes the way of a run: the address, the token, the Python and the environment of the cluster
file. Its text goes along, and is all that a node needs (`on_ray`).
"""

import json
import math
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from igpt.clusters.base import ClusterConfig
from igpt.clusters.doctor.finding import EVERYWHERE, Finding
from igpt.clusters.doctor.gathering import NODE_SECONDS, Gathered, Say
from igpt.clusters.doctor.report import Collector, Errand, arguments, boot, sources
from igpt.clusters.ray import client
from igpt.clusters.ray.config import RayCluster
from igpt.clusters.submission import way_to_store

#: Begins each line of `on_ray`.
MARK = "IGPT-DOCTOR-RAY"

_LOOK_SECONDS = 0.5


class Transcript:
    """What the job has said so far, read from the whole of its output each time."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.resources: list[dict[str, float]] = []  # of each node, all that it has
        self.other: list[str] = []  # lines that are not of `on_ray`
        self.spoken: list[tuple[float, str]] = []  # by the head's clock
        self._ahead = float("-inf")  # of the head, against this machine
        self._read = 0

    def read(self, output: str, now: float) -> None:
        """Takes in what is new; now: when it was asked for, seconds since the epoch."""
        whole = output[: output.rfind("\n") + 1]
        for line in whole[self._read :].splitlines():
            if not line.startswith(f"{MARK} "):
                self.other = [*self.other[-20:], line.strip()] if line.strip() else self.other
                continue
            _, moment, text = line.split(" ", 2)
            # It came later than it was said, so the greatest difference is the closest.
            self._ahead = max(self._ahead, float(moment) - now)
            if text.startswith('{"nodes"'):
                said = json.loads(text)
                self.nodes, self.resources = said["nodes"], said["resources"]
            elif text and not text.startswith('{"ended"'):
                self.spoken.append((float(moment), text))
        self._read = len(whole)

    def collected(self) -> Collector:
        """What the nodes said, their clocks compared with this machine's."""
        collector = Collector()
        for moment, text in self.spoken:
            collector.feed(text, moment - self._ahead)
        return collector


def gather(cluster: ClusterConfig, errand: Errand, wait: float, say: Say) -> Gathered:
    """What the nodes say. Raises Unreachable where the cluster is not, or does not take us."""
    assert isinstance(cluster, RayCluster)
    client.ask(cluster, "/api/version")
    job = f"igpt-doctor-{errand.token}"
    transcript = Transcript()
    with tempfile.TemporaryDirectory() as folder:
        _pack(Path(folder), errand)
        client.submit(cluster, _submission(cluster, job, folder))
    try:
        trouble = _listen(cluster, job, transcript, wait, say)
    finally:
        client.stop(cluster, job)
    collector = transcript.collected()
    missing = len(transcript.nodes) - len(collector.ranks())
    if not trouble and (missing or not transcript.nodes):
        trouble = "; ".join([*transcript.other[-4:], *collector.other[-4:]])
    mend = "" if transcript.nodes else "`python` of the cluster file has to be one that has Ray"
    nodes = max(len(transcript.nodes), 1)
    room = [capacity(own, cluster.each()) for own in transcript.resources]
    return Gathered(
        collector.reports(),
        nodes,
        trouble=trouble,
        mend=mend if trouble else "",
        findings=workers(cluster, transcript.resources) if transcript.nodes else (),
        idle=frozenset(name for name, one in zip(transcript.nodes, room, strict=True) if not one),
    )


def capacity(own: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many workers a node has room for when nobody else is there."""
    return min(math.floor(own.get(name, 0.0) / amount + 1e-9) for name, amount in each.items())


def workers(cluster: RayCluster, nodes: Sequence[Mapping[str, float]]) -> list[Finding]:
    """Whether the workers that a run cannot do without could ever be there.

    nodes: all that each has, by resource.
    """
    each = cluster.each()
    room = [capacity(own, each) for own in nodes]
    fitting = {
        "STRICT_PACK": max(room, default=0),
        "STRICT_SPREAD": sum(map(bool, room)),
    }.get(cluster.placement, sum(room))
    found = f"room for {fitting} workers of {cluster.each_in_words} each, if nobody else is there"
    if fitting >= cluster.least_workers:
        return [Finding("workers", "ok", EVERYWHERE, found)]
    lacking = [name for name in each if not any(name in own for own in nodes)]
    why = f": no node has {', '.join(lacking)}" if lacking else ""
    mend = (
        "A run would wait for ever, unless an autoscaler adds nodes: change workers, what each"
        " gets, or placement in the cluster file (`ray status` on the head shows what there is)"
    )
    found = f"{found}; the cluster file wants {cluster.least_workers} at least{why}"
    return [Finding("workers", "fail", EVERYWHERE, found, mend)]


def _pack(folder: Path, errand: Errand) -> None:
    """Puts there what goes along with the job."""
    body = {
        "sources": sources(),
        "command": [*boot(), *arguments(errand)],
        "ports": list(errand.ports),
    }
    (folder / "errand.json").write_text(json.dumps(body))
    text = Path(__file__).with_name("on_ray.py").read_text()
    (folder / "on_ray.py").write_text(text)


def _submission(cluster: RayCluster, job: str, folder: str) -> dict[str, object]:
    return {
        "entrypoint": shlex.join([*shlex.split(cluster.python), "-u", "on_ray.py"]),
        "submission_id": job,
        "runtime_env": {"working_dir": folder, "env_vars": {**way_to_store(), **cluster.variables}},
    }


def _listen(cluster: RayCluster, job: str, transcript: Transcript, wait: float, say: Say) -> str:
    """Until the job has ended; returns what went wrong, if it did."""
    begun = time.monotonic()
    spoken: float | None = None  # when the job first did
    while True:
        asked = time.time()
        over = client.ask(cluster, f"/api/jobs/{job}").get("status") in client.OVER
        transcript.read(str(client.ask(cluster, f"/api/jobs/{job}/logs").get("logs", "")), asked)
        now = time.monotonic()
        if spoken is None and transcript.nodes:
            spoken = now
            say(f"examining {len(transcript.nodes)} nodes ...")
        if over:
            return ""
        if spoken is None and now - begun > wait:
            return f"the job {job} has not started within {wait:.0f} s"
        if spoken is not None and now - spoken > NODE_SECONDS:
            return f"the nodes have not ended within {now - spoken:.0f} s"
        time.sleep(_LOOK_SECONDS)
