"""One run on three clusters: begun on Slurm with two workers, moved to Ray with one, ended locally
with three. Every batch is as planned, and each move changes the losses by rounding at most.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from igpt.clusters import cancel, resume
from igpt.clusters.files import cluster_at
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.record import open_run
from igpt.runs.state import RunState
from igpt.storage import Store, open_store
from tests.cluster import scenario
from tests.cluster.scenario import LONGER, on_ray, where
from tests.support import study
from tests.support.ray_cluster import RayHosts
from tests.support.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("slow_disk")]

#: Losses after a move are those of a run that stayed, for so many steps and to so much.
STEPS, NATS = 20, 1e-5


@pytest.fixture
def stay(tmp_path: Path) -> Iterator["Stay"]:
    made = Stay(tmp_path)
    yield made
    made.clean()


class Stay:
    """Copies of a run that go on where the original was moved away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stores: list[Store] = []

    def losses(self, run: Run, workers: int) -> dict[int, float]:
        """What the run would have gone on with, had it stayed with so many workers."""
        place = self._folder / f"stayed-{len(self._stores)}"
        original = run.root.local_path("runs")
        assert original is not None
        shutil.copytree(original.parent, place)
        store = open_store(str(place))
        self._stores.append(store)
        copy = open_run(store, run.id)
        begun = len(copy.claims())
        resume(copy, study.cluster(workers=workers, max_parallel=9))
        study.until(lambda: len(copy.claims()) > begun, "the copy goes on")
        last = copy.claims()[-1].start_step + STEPS
        study.until(lambda: scenario.trained(copy, last + 5), "the copy trains on")
        cancel(copy)
        assert study.ended(copy).state is RunState.CANCELLED
        return study.losses(copy)

    def clean(self) -> None:
        """Ends what still runs."""
        for store in self._stores:
            with study.cleaned(store):
                pass


@pytest.mark.long
def test_a_run_moves_from_slurm_to_ray_to_this_machine_with_any_number_of_workers(
    private_slurm: SlurmCluster,
    ray_hosts: RayHosts,
    digits: Path,
    root: Store,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    stay: Stay,
) -> None:
    base = scenario.base_folder(tmp_path_factory)
    run = study.start(root, where(tmp_path), *LONGER)
    study.until(lambda: scenario.trained(run, 100), "it trains on Slurm", 240)
    cancel(run)
    assert scenario.ended(run).state is RunState.CANCELLED, scenario.story(run)
    first = int(scenario.last(run, ev.CHECKPOINTED)["step"])
    straight = scenario.yardstick(digits, base, *LONGER)

    resume(run, on_ray(ray_hosts, workers=1))
    study.until(lambda: scenario.trained(run, first + 100), "it trains on Ray", 240)
    cancel(run)
    assert scenario.ended(run).state is RunState.CANCELLED, scenario.story(run)
    second = int(scenario.last(run, ev.CHECKPOINTED)["step"])
    stayed = stay.losses(run, workers=1)

    resume(run, study.cluster(workers=3, max_parallel=9))
    assert scenario.ended(run, 400).state is RunState.FINISHED, scenario.story(run)

    assert [claim.workers for claim in run.claims()] == [2, 1, 3]
    kinds = [cluster_at(run, claim.attempt).kind for claim in run.claims()]
    assert kinds == ["slurm", "ray", "local"]
    assert [claim.start_step for claim in run.claims()] == [0, first, second]
    assert study.digests(run) == scenario.planned(digits, base, *LONGER)
    losses = study.losses(run)
    assert all(losses[step] == straight[step] for step in range(1, first + 1))
    assert apart(losses, straight, first) < NATS
    assert apart(losses, stayed, second) < NATS
    assert apart(losses, stayed, second) > 0  # it was another number of workers
    spread = seeds(digits, tmp_path_factory)
    assert abs(final(run) - spread[0]) <= max(spread) - min(spread)


def apart(one: dict[int, float], other: dict[int, float], after: int) -> float:
    """The largest difference of the first losses after a step."""
    return max(abs(one[step] - other[step]) for step in range(after + 1, after + STEPS + 1))


def final(run: Run) -> float:
    """The validation loss of a finished run."""
    result = run.result()
    assert result is not None
    return float(result["validation_loss"])


def seeds(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The validation losses of three runs that stayed, each with a seed of its own."""
    base = scenario.base_folder(tmp_path_factory)
    return [scenario.final(digits, base, *LONGER, *more) for more in ((), ("seed=1",), ("seed=2",))]
