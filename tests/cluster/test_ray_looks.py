"""What one sees of a run on a real Ray: its figures, its place in the dashboard, its state."""

import json
import urllib.request
from pathlib import Path

import pytest

from igpt.clusters import cancel, status
from igpt.clusters.ray.backend import job_id
from igpt.runs.state import RunState
from igpt.storage import Store
from tests.cli.command import igpt
from tests.cluster import scenario
from tests.cluster.scenario import LONG
from tests.cluster.test_ray_recovery import where
from tests.clusters.test_gauges import figures_in
from tests.support import study
from tests.support.ray_cluster import METRICS_PORT, RayHosts

pytestmark = pytest.mark.timeout(900)


def test_the_figures_and_the_dashboard_show_a_run_while_it_runs(
    ray_hosts: RayHosts, root: Store, tmp_path: Path
) -> None:
    run = study.start(root, where(ray_hosts), *LONG, "schedule.steps=100000")
    study.until(lambda: scenario.trained(run, 20), "it trains")

    found: dict[str, dict[str, float]] = {}

    def exported() -> bool:
        for node in ("head", "w1"):
            address = f"http://{ray_hosts.address(node)}:{METRICS_PORT}/metrics"
            with urllib.request.urlopen(address, timeout=30) as answer:
                found.update(figures_in(answer.read().decode(), run.id))
        return set(found) == {"0", "1"} and all(len(one) == 4 for one in found.values())

    study.until(exported, f"the figures of both ranks: {found}")
    for figures in found.values():
        # There is no peak to compare a CPU with, so no MFU.
        names = {"igpt_loss", "igpt_tokens_per_second", "igpt_step", "igpt_data_wait"}
        assert set(figures) == names
        assert figures["igpt_step"] >= 20
        assert 0 < figures["igpt_loss"] < 3

    shown = igpt("dashboard", run.id, "--json", folder=tmp_path, store=root.uri)
    assert shown.returncode == 0, shown.stderr
    page = f"{ray_hosts.server}/#/jobs/{job_id(run.uri, 1)}"
    assert json.loads(shown.stdout)["url"] == page

    (seen,) = ray_hosts.ask("/api/train/v2/runs/v1")["train_runs"]
    assert seen["name"] == f"{run.id}-a1"
    assert seen["status"] == "RUNNING"
    cancel(run)
    assert scenario.ended(run).state is RunState.CANCELLED
    assert status(run).exit_code == 5
