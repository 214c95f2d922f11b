"""What one sees of a real Ray: of a run its figures and its page, of the nodes what is wrong."""

import json
import subprocess
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from igpt.clusters import cancel, status
from igpt.clusters.ray.backend import job_id
from igpt.config import dump_yaml
from igpt.runs.state import RunState
from igpt.storage import Store
from tests.cli.command import igpt
from tests.cluster import scenario
from tests.cluster.scenario import LONG, on_ray
from tests.clusters.test_gauges import figures_in
from tests.support import study
from tests.support.ray_cluster import METRICS_PORT, RayHosts
from tests.support.schemas import validated

pytestmark = pytest.mark.timeout(900)


@pytest.mark.usefixtures("slow_disk")
def test_the_figures_and_the_dashboard_show_a_run_while_it_runs(
    ray_hosts: RayHosts, root: Store, tmp_path: Path
) -> None:
    run = study.start(root, on_ray(ray_hosts), *LONG, "schedule.steps=100000")
    study.until(lambda: scenario.trained(run, 20), "it trains")

    found: dict[str, dict[str, float]] = {}

    def exported() -> bool:
        for node in ("head", "w1"):
            address = f"http://{ray_hosts.address(node)}:{METRICS_PORT}/metrics"
            with urllib.request.urlopen(address, timeout=30) as answer:
                found.update(figures_in(answer.read().decode(), run.id))
        # Ray exports them some seconds after they are set.
        moved = [one for one in found.values() if one.get("igpt_step", 0) >= 20]
        return set(found) == {"0", "1"} and len(moved) == 2

    study.until(exported, f"the figures of both ranks: {found}")
    for figures in found.values():
        # There is no peak to compare a CPU with, so no MFU.
        names = {"igpt_loss", "igpt_tokens_per_second", "igpt_step", "igpt_data_wait"}
        assert set(figures) == names
        assert 0 < figures["igpt_loss"] < 3

    shown = igpt("dashboard", run.id, "--json", folder=tmp_path, store=root.uri)
    assert shown.returncode == 0, shown.stderr
    page = f"{ray_hosts.server}/#/jobs/{job_id(run, 1)}"
    assert json.loads(shown.stdout)["address"] == page

    (seen,) = ray_hosts.ask("/api/train/v2/runs/v1")["train_runs"]
    assert seen["name"] == f"{run.id}-a1"
    assert seen["status"] == "RUNNING"
    cancel(run)
    assert scenario.ended(run).state is RunState.CANCELLED
    assert status(run).exit_code == 5


def doctor(folder: Path, store: Store) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and what was found."""
    ended = igpt("doctor", "--cluster", "ray.yaml", "--json", folder=folder, store=store.uri)
    return ended.returncode, validated("doctor", ended.stdout)["findings"]


def test_the_doctor_asks_every_node_and_names_the_one_that_lacks_a_package(
    ray_hosts: RayHosts, root: Store, tmp_path: Path
) -> None:
    (tmp_path / "ray.yaml").write_text(dump_yaml(on_ray(ray_hosts)))
    code, findings = doctor(tmp_path, root)
    assert [one for one in findings if one["level"] != "ok"] == []
    assert code == 0
    assert {one["check"] for one in findings} >= {
        "clock",
        "names",
        "workers",
        "store",
        "all-reduce",
    }

    spec = find_spec("webdataset")
    assert spec is not None
    assert spec.origin is not None
    (tmp_path / "empty").mkdir()
    raylet = str(ray_hosts.pids("w1", "raylet")[0])
    over = ("mount", "--bind", str(tmp_path / "empty"), str(Path(spec.origin).parent))
    subprocess.run(["nsenter", "--target", raylet, "--mount", *over], check=True)
    code, findings = doctor(tmp_path, root)
    failed = [one for one in findings if one["level"] == "fail" and one["check"] == "packages"]
    assert code == 3
    assert [one["where"] for one in failed] == ["w1"]
    assert "webdataset" in failed[0]["found"]
    assert failed[0]["mend"]
