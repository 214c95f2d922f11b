"""What the tests of sweeps on several nodes share: a small probe, where it ran, what it found."""

import json
import re
from pathlib import Path
from typing import Any

from igpt.clusters import submit
from igpt.clusters.base import ClusterConfig
from igpt.config import load
from igpt.jobs import find_job
from igpt.runs import Run
from igpt.runs.logs import log_parts
from igpt.storage import Store

PROBE = """
budgets: [20, 40, all]
seeds: [1, 2, 3]
l2: [0.1, 0.001]
"""
#: Some seconds a layer, for something to happen in between and for both nodes to be needed.
SLOW = (f"seeds={list(range(1, 7))}", f"l2={[10.0**-power for power in range(8)]}")
#: Trained and untrained, three layers each, and raw pixels.
LAYERS = 7


def sweep(store: Store, cluster: ClusterConfig, *overrides: str) -> Run:
    """Submits a probe of the network."""
    job = find_job("probe")
    (model,) = (name for name in store.children("runs") if name.startswith("tiny"))
    config = load(job.config, PROBE, "test.yaml", (f"model={model}", *overrides))
    return submit(store, job, config, cluster, folder=Path("/"), arguments=["test"]).run


def hosts(run: Run, attempt: int) -> list[str]:
    """Where each layer was fitted, as far as the rank of an attempt has heard of it."""
    return re.findall(r"^layer \d+ of [a-z ]+, on (\w+)$", said(run, attempt), re.MULTILINE)


def said(run: Run, attempt: int) -> str:
    """All that the ranks of an attempt have logged."""
    parts = log_parts(run.record, attempt)
    return b"".join(run.record.get(part.key) for part in parts).decode()


def layers(run: Run) -> list[str]:
    """The layers whose rows are there."""
    return run.record.children("probe/layers")


def table(run: Run) -> list[dict[str, Any]]:
    """The rows of a sweep, without the time that each has taken."""
    rows = json.loads(run.record.get("probe/rows.json"))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
