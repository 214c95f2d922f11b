"""What the scenarios on real clusters have in common: the run, its yardstick, what became of it.

The yardstick is the same work, undisturbed, by as many workers on the local cluster: the losses
have to be the same, to the last bit, with no step twice.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from igpt.clusters import status
from igpt.clusters.ray.config import RayCluster
from igpt.clusters.slurm.config import SlurmCluster
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.reading import read_json
from igpt.runs.state import Status
from igpt.storage import Store, open_store
from tests.support import study
from tests.support.ray_cluster import RayHosts
from tests.support.slurm_cluster import Slurm

#: With `slow_disk` long enough for something to happen in between: some 20 s.
LONG = (
    "schedule.steps=400",
    "checkpoints.every_steps=100",
    "validation.every=400",
    "sync_every=2",
)

#: Where more has to happen, such as a node that comes back.
LONGER = (*LONG, "schedule.steps=800")


def where(folder: Path, **fields: Any) -> SlurmCluster:
    """Two nodes with a worker each, that look often."""
    given = {
        "workers": 2,
        "nodes": 2,
        "cpus_per_worker": 1,
        "time": "20",
        "grace_seconds": 30,
        "heartbeat_seconds": 0.5,
        "folder": str(folder / "shared"),
    }
    return SlurmCluster(**(given | fields))


def on_ray(hosts: RayHosts, **fields: Any) -> RayCluster:
    """Two workers of one CPU, that look often."""
    given = {
        "address": hosts.server,
        "token_file": str(hosts.token),
        "workers": 2,
        "heartbeat_seconds": 0.5,
        "grace_seconds": 30,
        "python": sys.executable,
    }
    return RayCluster(**(given | fields))


def yardstick(digits: Path, base: Path, *overrides: str) -> dict[int, float]:
    """The losses of the undisturbed run, trained once for all tests of a session."""
    return {
        int(step): loss for step, loss in _undisturbed(digits, base, *overrides)["losses"].items()
    }


def planned(digits: Path, base: Path, *overrides: str) -> dict[int, str]:
    """The token digests of the undisturbed run."""
    return {
        int(step): one for step, one in _undisturbed(digits, base, *overrides)["digests"].items()
    }


def final(digits: Path, base: Path, *overrides: str) -> float:
    """The validation loss of the undisturbed run."""
    return float(_undisturbed(digits, base, *overrides)["final"]["validation_loss"])


def _undisturbed(digits: Path, base: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    name = f"yardstick-{hashlib.sha256(repr(overrides).encode()).hexdigest()[:8]}"
    result = base / f"{name}.json"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            store = open_store(str(base / name))
            for info in open_store(str(digits)).objects("data/"):
                store.put(info.key, open_store(str(digits)).get(info.key))
            with study.cleaned(store), pytest.MonkeyPatch.context() as here:
                here.delenv("SLOW_DISK", raising=False)
                run = study.start(store, study.cluster(workers=2, max_parallel=9), *overrides)
                assert study.ended(run, 600).state is study.FINISHED
            made = {
                "losses": study.losses(run),
                "digests": study.digests(run),
                "final": run.result(),
            }
            result.write_text(json.dumps(made))
        found: dict[str, dict[str, Any]] = json.loads(result.read_text())
        return found


def ended(run: Run, seconds: float = 480.0) -> Status:
    """How a run stands once nothing works on it any more."""
    study.until(lambda: not status(run).state.active, f"{run.id} ends: {story(run)}", seconds)
    return status(run)


def running(run: Run) -> None:
    """Waits until the run trains."""
    study.until(lambda: trained(run, 1), f"{run.id} trains")


def trained(run: Run, step: int) -> bool:
    """Whether the newest attempt has reported this step."""
    beat = run.heartbeat()
    return beat is not None and beat.progress.get("done", 0) >= step


def story(run: Run) -> list[str]:
    """What happened, in words."""
    return [
        f"{event.attempt} {event.kind} {event.fields.get('class', '')}".strip()
        for event in run.events(ev.LIFE)
    ]


def kinds(run: Run) -> Counter[str]:
    """How often each thing happened."""
    return Counter(event.kind for event in run.events(ev.LIFE))


def last(run: Run, kind: str) -> dict[str, Any]:
    """What the newest event of a kind says."""
    event = run.last_event(kind)
    assert event is not None, story(run)
    return event.fields


def job(run: Run) -> str:
    """The run's job in Slurm."""
    return str(last(run, ev.LAUNCHED)["job"])


def meeting(run: Run) -> dict[str, Any]:
    """Where the ranks of the newest attempt are."""
    return read_json(run.record, f"attempts/{run.claims()[-1].attempt:04d}/meeting.json")


def hosts(slurm: Slurm, run: Run) -> list[str]:
    """The nodes of a running job, the batch host first."""
    listed = slurm.squeue("--job", job(run), "--format", "%N")
    return slurm.output("scontrol", "show", "hostnames", listed).split()


def ranks(run: Run) -> dict[int, int]:
    """Process ids of the living workers by rank."""
    found = {}
    for pid in study.processes(run, "igpt.jobs"):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = next(word for word in environment if word.startswith(b"RANK="))
        found[int(rank.partition(b"=")[2])] = pid
    return found


def last_step(run: Run, attempt: int) -> int:
    """The last step that an attempt has reported, whether or not it counts."""
    folder = f"attempts/{attempt:04d}"
    parts = [name for name in run.record.children(folder) if name.startswith("metrics-")]
    texts = [run.record.get(f"{folder}/{name}").decode() for name in parts]
    return max(json.loads(line)["step"] for text in texts for line in text.splitlines())


def written(store: Store) -> set[str]:
    """Every object of a store."""
    return {info.key for info in store.objects()}


def base_folder(tmp_path_factory: Any) -> Path:
    """A folder that all processes of a test session share."""
    base: Path = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
