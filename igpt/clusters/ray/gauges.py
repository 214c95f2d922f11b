"""The figures of a run among Ray's own metrics: `ray_igpt_loss` and the others of igpt.clusters.

Each Ray node exports them for Prometheus with everything else that Ray says of itself. A worker
that ends takes its series along, within half a minute.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ray.util.metrics import Gauge

from igpt.clusters.figures import FIGURES, figures


def gauges(run_id: str) -> Callable[[int, Mapping[str, Any]], None]:
    """What keeps the gauges of a run's ranks in this Ray worker, for `run_ranks(show=)`.

    They are tagged with `run` and `rank`; what is not known has no gauge.
    """
    known = {
        figure.name: Gauge(figure.name, figure.description, tag_keys=("run", "rank"))
        for figure in FIGURES
    }

    def show(rank: int, progress: Mapping[str, Any]) -> None:
        for name, value in figures(progress).items():
            known[name].set(value, tags={"run": run_id, "rank": str(rank)})

    return show
