"""Drawing in batches: kept as they are drawn, shared by any number of workers."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt.config import load, plain
from igpt.errors import DataCorrupt, IgptError
from igpt.jobs import find_job
from igpt.jobs.base import Preparation
from igpt.jobs.context import Context, RunSink, Stopped
from igpt.jobs.entries import generate as entry
from igpt.jobs.generate import GenerateConfig
from igpt.model.config import ModelConfig
from igpt.runs import Run, create_run
from igpt.runs.attempts import Claim
from igpt.storage import Store
from tests.jobs.test_inputs import exported

torch.set_num_threads(1)

RECIPE = "samples=5", "completions=3", "completions_each=2", "batch=2", "device=cpu"
#: 3 batches of samples, and 2 of each completion.
PARTS = 7


class Drawing:
    """A run of `generate`, of which each call is a worker."""

    def __init__(self, root: Store, folder: Path, *overrides: str) -> None:
        job = find_job("generate")
        given = "model=./model", "data=data/digits", *RECIPE, *overrides
        config = load(job.config, "{}", "test.yaml", given)
        made = job.prepare(config, Preparation(root, folder, workers=1))
        assert isinstance(made.config, GenerateConfig)
        self.config = made.config
        self.run, created = create_run(
            root,
            job="generate",
            name="drawn",
            config=plain(made.config),
            inputs=made.inputs,
            new=True,
            status=Run.status,
        )
        assert created
        self.scratch = folder

    def __call__(
        self,
        rank: int = 0,
        world_size: int = 1,
        stop: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> dict[str, object]:
        context = Context(
            run=self.run,
            claim=Claim(attempt=1, launch="alone", host="here", workers=world_size, time=0.0),
            rank=rank,
            world_size=world_size,
            local_rank=0,
            stop=stop,
            sink=RunSink(self.run, 1, self.scratch, rank),
        )
        return entry.run(self.config, context, sleep=sleep, clock=clock)

    def parts(self) -> dict[str, float]:
        """The batches that were kept, and when."""
        kept = self.run.record.objects("samples/parts/")
        return {info.key.rpartition("/")[2]: info.modified for info in kept}

    def made(self) -> dict[str, bytes]:
        """Tokens and pictures."""
        record = self.run.record
        names = [name for name in record.children("samples") if name != "parts"]
        return {name: record.get(f"samples/{name}") for name in names}


def after(looks: int) -> Callable[[], bool]:
    """Asks to stop at the look after so many."""
    left = [looks]

    def stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return stop


@pytest.fixture(autouse=True)
def _model(root: Store, tmp_path: Path) -> None:
    exported(root, tmp_path, ModelConfig(layers=1, width=8, heads=1, resolution=8, colors=16))


def test_a_drawing_is_whole(root: Store, tmp_path: Path) -> None:
    drawing = Drawing(root, tmp_path)
    result = drawing()
    assert (result["samples"], result["originals"], result["completions"]) == (5, 3, 3)
    made = drawing.made()
    assert set(made) == {
        *("samples.npy", "originals.npy", "completions.npy", "samples.png", "completions.png")
    }
    shapes = {
        name: np.load(root.local_path(f"runs/{drawing.run.id}/samples/{name}.npy")).shape
        for name in ("samples", "originals", "completions")
    }
    assert shapes == {"samples": (5, 64), "originals": (3, 64), "completions": (3, 2, 64)}


def test_a_stop_costs_no_batch_that_was_drawn(root: Store, tmp_path: Path) -> None:
    whole = Drawing(root, tmp_path)
    whole()
    torn = Drawing(root, tmp_path)
    with pytest.raises(Stopped):
        torn(stop=after(4))
    kept = torn.parts()
    assert len(kept) == 4
    assert torn.made() == {}
    torn()
    assert len(torn.parts()) == PARTS
    assert kept.items() <= torn.parts().items()
    assert torn.made() == whole.made()


def test_what_is_drawn_already_needs_no_model(
    root: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = Drawing(root, tmp_path)
    drawing()
    before = drawing.made()
    monkeypatch.delattr(entry, "load_model")
    drawing()
    assert drawing.made() == before


def test_any_number_of_workers_draws_the_same(root: Store, tmp_path: Path) -> None:
    alone = Drawing(root, tmp_path)
    alone()
    shared = Drawing(root, tmp_path)
    assert shared(rank=1, world_size=3) == {}
    assert len(shared.parts()) == 2
    assert shared.made() == {}
    shared(rank=2, world_size=3)
    assert shared(rank=0, world_size=3)["samples"] == 5
    assert shared.made() == alone.made()
    assert Drawing(root, tmp_path)(rank=9, world_size=10) == {}  # one that has nothing to do


def test_rank_0_waits_for_the_others_and_says_how_far_they_are(root: Store, tmp_path: Path) -> None:
    drawing, naps = Drawing(root, tmp_path), threading.Event()
    others = [threading.Thread(target=drawing, args=(1, 2))]

    def sleep(seconds: float) -> None:
        if not naps.is_set():
            naps.set()
            others[0].start()
        others[0].join()

    assert drawing(rank=0, world_size=2, sleep=sleep)["samples"] == 5
    assert naps.is_set()
    assert (tmp_path / "progress-0.json").read_text().startswith('{"done": 11, "total": 11')


def test_rank_0_stops_while_it_waits_and_does_not_wait_for_ever(
    root: Store, tmp_path: Path
) -> None:
    drawing = Drawing(root, tmp_path)
    with pytest.raises(Stopped):
        drawing(rank=0, world_size=2, stop=after(5))  # 4 batches of its own
    ticks = iter(range(0, 100_000, 1000))
    with pytest.raises(IgptError, match=r"of other .* 3 are missing, the first is samples-"):
        drawing(rank=0, world_size=2, clock=lambda: float(next(ticks)))


def test_a_damaged_batch_is_named(root: Store, tmp_path: Path) -> None:
    drawing = Drawing(root, tmp_path)
    with pytest.raises(Stopped):
        drawing(stop=after(2))
    drawing.run.record.put("samples/parts/samples-00000002.npy", b"torn")
    with pytest.raises(DataCorrupt, match=r"samples-00000002\.npy"):
        drawing()
