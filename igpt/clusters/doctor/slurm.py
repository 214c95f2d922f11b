"""Has every node of a Slurm cluster examine itself: one job, started by srun from here.

The job gets what a run of this cluster file gets: partition, account, nodes, cores, GPUs,
container. The setup lines run on every node. srun carries the words both ways, so that a node is
heard whatever it cannot reach; and the job ends with srun, or by its time limit of some minutes.
"""

import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from igpt.clusters.base import ClusterConfig, Launch
from igpt.clusters.doctor.finding import Finding
from igpt.clusters.doctor.gathering import (
    NODE_SECONDS,
    Conversation,
    Gathered,
    Say,
    conversation,
    placed_code,
)
from igpt.clusters.doctor.report import Collector, Errand, arguments, boot, places, sources
from igpt.clusters.slurm import client
from igpt.clusters.slurm.config import SlurmCluster, seconds_of
from igpt.clusters.slurm.place import make
from igpt.errors import IgptError

_LIMIT_MINUTES = 6  # of the job
#: How long the first node's word is not passed on, for the other nodes to speak up.
_ALL_SECONDS = 45.0
_SAY_SECONDS = 15.0

#: Parameters of a run's job that an examination has no use for.
_NOT_OURS = frozenset(
    (
        *("job_name", "time", "mail_user", "mail_type", "dependency"),
        *("additional_parameters", "srun_args", "setup", "teardown"),
    )
)


def gather(cluster: ClusterConfig, errand: Errand, wait: float, say: Say) -> Gathered:
    """What the nodes say. Raises UserError where this is no login node."""
    assert isinstance(cluster, SlurmCluster)
    client.check_login_node()
    folder = cluster.shared_folder()
    code, findings = _place(folder)
    name = f"igpt-doctor-{errand.token}"
    collector = Collector()
    try:
        with conversation(srun(cluster, errand, name, code), _variables()) as talk:
            try:
                trouble = _listen(talk, collector, cluster, errand, name, wait, say)
            finally:
                if talk.process.poll() is None and (
                    problem := client.instruct("scancel", f"--name={name}")
                ):
                    say(f"the job {name} could not be cancelled: {problem}")
    except OSError as error:
        trouble = str(error)
    mend = ""
    if not collector.ranks() and not trouble:
        trouble, mend = _refusal(collector.other[-8:])
    if not trouble and len(collector.ranks()) < cluster.nodes:
        trouble = "; ".join(collector.other[-8:])
    return Gathered(collector.reports(), cluster.nodes, code, trouble, mend, findings)


def _refusal(said: list[str]) -> tuple[str, str]:
    """What is wrong where nothing was heard of the nodes, by these last words, and what to do."""
    if _gone(said):
        return f"all nodes ended without a word; heard last: {'; '.join(said)}", (
            "See whether `setup` and `python` of the cluster file work on a node, by hand"
        )
    words = " ".join(said).replace("srun: error: ", "")
    if "launch" in words.lower():  # the job has started
        return f"srun is not reached from the nodes: {words}", (
            "Its ports (SrunPortRange in slurm.conf) have to be open on this machine for the nodes"
        )
    refusal = client.rejected(words)
    return refusal.what, refusal.mend


def _place(folder: Path) -> tuple[Path | None, list[Finding]]:
    try:
        make(folder)
    except IgptError as error:
        return None, [Finding("disk", "fail", "client", error.what, error.mend)]
    return placed_code(folder / "code")


def _listen(
    talk: Conversation,
    collector: Collector,
    cluster: SlurmCluster,
    errand: Errand,
    name: str,
    wait: float,
    say: Say,
) -> str:
    """Until all nodes have said all; returns what went wrong, if it did."""
    talk.tell(sources())
    begun = time.monotonic()
    spoken: float | None = None  # when the first node did
    introduced = False
    said = begun
    waiting = ""
    while collector.ended() < cluster.nodes:
        line = talk.hear(0.5)
        if line is None:
            return ""
        collector.feed(line)
        now = time.monotonic()
        if collector.ranks() and spoken is None:
            spoken = now
            say(f"examining {cluster.nodes} nodes ...")
        if spoken is None:
            if now - begun > wait:
                why = _described(name) or waiting
                return f"they have not started within {wait:.0f} s" + (f": {why}" if why else "")
            if now - said > _SAY_SECONDS or (not waiting and now - begun > 2.0):
                said, waiting = now, _described(name) or "Slurm does not say why"
                say(f"waiting for {cluster.nodes} nodes in the queue: {waiting} ...")
            continue
        met = _introduced(collector) | _gone(collector.other)
        if not introduced and (len(met) == cluster.nodes or now - spoken > _ALL_SECONDS):
            introduced = True
            talk.tell(places(_nodes(collector, cluster.nodes), errand.ports))
        if now - spoken > NODE_SECONDS + _ALL_SECONDS:
            return f"they have not ended within {now - spoken:.0f} s"
    return ""


def _introduced(collector: Collector) -> set[int]:
    """The nodes that have said who they are."""
    return {report.rank for report in collector.reports() if "hello" in report.facts}


def _gone(said: list[str]) -> set[int]:
    """The nodes whose task has ended, by srun's words: `srun: error: n2: task 1: Exited ...`."""
    found: set[int] = set()
    for line in said:
        if match := re.match(r"srun: error: \S+: tasks? ([\d,-]+): ", line):
            for part in match[1].split(","):
                first, _, last = part.partition("-")
                found |= set(range(int(first), int(last or first) + 1))
    return found


def _nodes(collector: Collector, count: int) -> list[tuple[str | None, str | None]]:
    known = {report.rank: report.fact("hello") for report in collector.reports()}
    return [
        (known[rank].get("name"), known[rank].get("address")) if rank in known else (None, None)
        for rank in range(count)
    ]


def _described(name: str) -> str:
    """What Slurm says of the job while it waits."""
    queue = client.Slurm().queue() or {}
    return next((job.described for job in queue.values() if job.name == name), "")


def srun(cluster: SlurmCluster, errand: Errand, name: str, code: Path | None) -> list[str]:
    """The command that starts one examination on every node."""
    from igpt.clusters.slurm.script import parameters  # which imports submitit

    given = parameters(cluster, Launch(f"/runs/{name}", 1), Path("/"))
    flags: dict[str, Any] = {
        key.replace("_", "-"): value
        for key, value in given.items()
        if key not in _NOT_OURS and value is not None
    }
    more = given["additional_parameters"]
    flags |= {k: value for k, value in more.items() if k not in ("requeue", "chdir", "signal")}
    minutes = min(_LIMIT_MINUTES, max(1, seconds_of(cluster.time) // 60))
    flags |= {"job-name": name, "time": minutes, "chdir": "/", "export": "ALL"}
    # A node that fails is no reason to end the others, nor is one that is slow.
    flags |= {"kill-on-bad-exit": 0, "wait": 0}
    words = [f"--{key}" if value is True else f"--{key}={value}" for key, value in flags.items()]
    return ["srun", *words, *cluster.srun_args, "bash", "-c", _script(cluster, errand, code)]


def _script(cluster: SlurmCluster, errand: Errand, code: Path | None) -> str:
    """What runs on each node; what the setup lines read is not meant for them."""
    python = cluster.python or shlex.quote(sys.executable)
    known = shlex.join([*boot(), *arguments(errand)])
    there = '--rank="$SLURM_PROCID" --name="$SLURMD_NODENAME" --towards="$SLURM_LAUNCH_NODE_IPADDR"'
    lines = ["exec 3<&0 </dev/null", "export PYTHONSAFEPATH=1"]
    if code is not None:
        lines.append(f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}")
    return "\n".join([*lines, *cluster.setup, f"exec {python} {known} {there} <&3 3<&-"])


def _variables() -> dict[str, str]:
    """Ours, without those of a job that we may be in, which srun would take for its flags."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {
        key: value
        for key, value in os.environ.items()
        if key in kept or not key.startswith(("SLURM_", "SRUN_", "SBATCH_"))
    }
