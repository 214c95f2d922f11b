"""The figures of a run among the metrics of a real Ray, read where Prometheus reads them."""

import re
import shutil
import tempfile
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from igpt.clusters.figures import FIGURES
from tests.support import study

PROGRESS = {
    "done": 120,
    "total": 2_000,
    "unit": "steps",
    "loss": 2.5,
    "tokens_per_second": 20_480.0,
    "mfu": None,
    "data_wait": 0.5,
    "own_data_wait": 0.25,
}
LINE = re.compile(r"ray_(igpt_\w+)\{(.*)\} (\S+)")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a Ray of this test's own exports its metrics."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # its sockets want a short path
    try:
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
        )
        (node,) = ray.nodes()
        yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def figures_at(address: str) -> dict[str, dict[str, float]]:
    """For each rank of the run the figures that are exported."""
    with urllib.request.urlopen(address, timeout=30) as answer:
        return figures_in(answer.read().decode(), "tiny-1a2b3c4d")


def figures_in(text: str, run: str) -> dict[str, dict[str, float]]:
    """For each rank of a run the figures in the text that Prometheus reads."""
    found: dict[str, dict[str, float]] = {}
    for name, labels, value in LINE.findall(text):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags["run"] == run:
            found.setdefault(tags["rank"], {})[name] = float(value)
    return found


def test_the_figures_of_each_rank_are_on_the_metrics_endpoint(address: str) -> None:
    import ray

    @ray.remote
    class Parents:
        """Shows the progress of two ranks from a thread, as Ray Train runs its function in one."""

        def show(self, *losses: float) -> None:
            from igpt.clusters.ray.gauges import gauges

            def work() -> None:
                show = gauges("tiny-1a2b3c4d")
                for rank, loss in enumerate(losses):
                    show(rank, PROGRESS | {"loss": loss})

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    parents = Parents.remote()
    ray.get(parents.show.remote(2.5, 3.5))
    last = ("1", "igpt_data_wait")  # of what is set
    study.until(lambda: last[1] in figures_at(address).get(last[0], {}), "the gauges are exported")
    expected = {
        "igpt_loss": 2.5,
        "igpt_tokens_per_second": 20_480.0,
        "igpt_step": 120.0,
        "igpt_data_wait": 0.25,
    }
    assert figures_at(address) == {"0": expected, "1": expected | {"igpt_loss": 3.5}}
    assert {figure.name for figure in FIGURES} - set(expected) == {"igpt_mfu"}  # which is unknown

    ray.get(parents.show.remote(1.5))  # a later attempt in the same worker
    study.until(lambda: figures_at(address)["0"]["igpt_loss"] == 1.5, "the newer loss is exported")
