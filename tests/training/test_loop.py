"""One worker: it learns, says what it did, and loses nothing to an interruption."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from igpt.data.dataset import open_dataset
from igpt.data.loader import Loader, row_digest
from igpt.errors import IgptError, UserError
from igpt.model.config import ModelConfig
from igpt.model.transformer import ImageGPT
from igpt.storage import open_store
from igpt.training.checkpoint import list_committed
from igpt.training.schedule import learning_rate
from igpt.training.step import Worker
from tests.training.workers import MODEL, Job, MemorySink, configuration, merged, run_here


@pytest.fixture
def job(dataset: str, tmp_path: Path) -> Job:
    return Job(data=dataset, store=str(tmp_path / "checkpoints"), config=configuration(30))


def steps_of(sink: MemorySink) -> dict[int, dict[str, Any]]:
    return merged(sink.lines)


def test_it_does_what_a_loop_of_ten_lines_does(job: Job) -> None:
    sink = MemorySink()
    outcome = run_here(job, sink)
    model, data = ImageGPT(MODEL, seed=1), open_dataset(job.data)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.95))
    lines = steps_of(sink)
    assert list(lines) == list(range(1, 31))
    with Loader(data, split="train", global_batch=12) as loader:
        for step in range(30):
            _, tokens, _ = next(loader)
            rate = learning_rate(step, highest=0.003, warmup=5, steps=30)
            optimizer.param_groups[0]["lr"] = rate
            loss = model.loss(torch.from_numpy(tokens.astype(np.int64)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            line = lines[step + 1]
            assert line["loss"] == pytest.approx(loss.item(), abs=1e-5)
            assert line["learning_rate"] == rate
            assert line["digest"] == f"{row_digest(0, tokens):016x}"
    numbers = np.arange(13)
    tokens = torch.from_numpy(data.tokens("validation", numbers).astype(np.int64))
    with torch.no_grad():
        assert outcome.validation_loss == pytest.approx(model.loss(tokens).item(), abs=1e-5)
    assert outcome.status == "finished"
    assert outcome.step == 30
    assert outcome.loss == lines[30]["loss"]


def test_it_learns(job: Job) -> None:
    config = configuration(100, optimizer={"learning_rate": 0.01})
    sink = MemorySink()
    run_here(replace(job, config=config), sink)
    lines = steps_of(sink)
    assert lines[1]["loss"] == pytest.approx(np.log(16), abs=1e-5)
    assert lines[100]["loss"] < 0.85 * np.log(16)


def test_metrics_events_and_progress_tell_the_story(job: Job) -> None:
    sink = MemorySink()
    run_here(job, sink)
    validations = [line for line in sink.lines if "validation_loss" in line]
    assert [line["step"] for line in validations] == [10, 20, 30]
    assert [set(line) for line in validations] == [{"step", "validation_loss"}] * 3
    assert set(steps_of(sink)[7]) == {
        "step", "loss", "digest", "learning_rate", "tokens_per_second", "data_wait",
    }  # fmt: skip
    assert [line["step"] for line in sink.lines] == sorted(line["step"] for line in sink.lines)  # type: ignore[type-var]
    assert sink.kinds()[0] == "training"
    assert sink.kinds().count("validated") == 3
    assert sink.kinds().count("checkpointed") == 3
    started = sink.events[0][1]
    assert started["tokens_per_step"] == 12 * 16
    assert started["parameters"] == MODEL.parameters()
    assert (sink.shown["done"], sink.shown["mfu"]) == (30, None)
    json.dumps([sink.lines, sink.events, sink.shown], allow_nan=False)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_stop_and_a_resume_change_no_bit(job: Job, clip: float | None) -> None:
    job = replace(job, config=configuration(30, optimizer={"clip": clip}))
    straight = MemorySink()
    whole = ImageGPT(MODEL, seed=1)
    run_here(replace(job, store=job.store + "-straight"), straight, whole)

    first, second = MemorySink(), MemorySink()
    stopped = run_here(replace(job, stop_at=5), first)
    assert (stopped.status, stopped.step) == ("stopped", 12)
    resumed = ImageGPT(MODEL, seed=99)  # its weights come from the checkpoint
    outcome = run_here(replace(job, attempt=2, resume=True), second, resumed)
    assert second.kinds()[0] == "training-resumed"
    assert second.lines[0]["step"] == 13
    assert outcome.status == "finished"
    for key in ("loss", "digest", "learning_rate"):
        expected = {step: line[key] for step, line in steps_of(straight).items()}
        found = merged(first.lines, second.lines)
        assert {step: line[key] for step, line in found.items()} == expected
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert straight.lines[-1] == second.lines[-1]  # the validation loss at the end


def test_a_finished_run_that_lost_its_result_only_validates(job: Job) -> None:
    first, second = MemorySink(), MemorySink()
    outcome = run_here(job, first)
    again = run_here(replace(job, attempt=2, resume=True), second)
    assert again.status == "finished"
    assert again.validation_loss == outcome.validation_loss
    assert not second.lines


def test_micro_batches_change_only_the_rounding(job: Job) -> None:
    whole, parts = MemorySink(), MemorySink()
    run_here(job, whole)
    batch = {"global": 12, "micro": 5}
    run_here(replace(job, store=job.store + "-2", config=configuration(30, batch=batch)), parts)
    assert [line["loss"] for line in steps_of(parts).values()] == pytest.approx(
        [line["loss"] for line in steps_of(whole).values()], abs=1e-5
    )


def test_bfloat16_learns_the_same_within_its_precision(job: Job) -> None:
    exact, rough = MemorySink(), MemorySink()
    run_here(job, exact)
    config = configuration(30, precision="bfloat16", compile=False)
    run_here(replace(job, store=job.store + "-2", config=config), rough)
    losses = [line["loss"] for line in steps_of(rough).values()]
    assert losses == pytest.approx([line["loss"] for line in steps_of(exact).values()], abs=0.02)
    assert losses != [line["loss"] for line in steps_of(exact).values()]
    events = dict(rough.events)
    assert events["training"]["precision"] == "bfloat16"


def test_metrics_are_durable_before_the_checkpoint_is_there(job: Job) -> None:
    store = open_store(job.store)

    class Watching(MemorySink):
        def superseded(self) -> bool:  # asked right before the commit
            uploaded = max(int(info.key[5:14]) for info in store.objects("step-"))
            durable = max(int(str(line["step"])) for line in self.lines)
            seen.append((uploaded, durable))
            return False

    seen: list[tuple[int, int]] = []
    run_here(job, Watching())
    assert {uploaded for uploaded, _ in seen} == {10, 20, 30}
    assert all(uploaded <= durable for uploaded, durable in seen)


def test_the_newest_and_the_milestones_are_kept(job: Job) -> None:
    settings = {"every_steps": 4, "every_minutes": None, "keep": 2, "milestones": [6, 13]}
    run_here(replace(job, config=configuration(30, checkpoints=settings)), MemorySink())
    assert [ref.step for ref in list_committed(open_store(job.store))] == [6, 13, 28, 30]


def test_time_asks_for_checkpoints_too(job: Job) -> None:
    settings = {"every_steps": None, "every_minutes": 1e-9, "keep": 100}
    run_here(replace(job, config=configuration(30, checkpoints=settings)), MemorySink())
    steps = [ref.step for ref in list_committed(open_store(job.store))]
    assert steps[0] == 3
    assert steps[-1] == 30


def test_a_newer_attempt_ends_this_one_before_it_commits(job: Job) -> None:
    sink = MemorySink(taken_over=True)
    outcome = run_here(job, sink)
    assert outcome.status == "superseded"
    assert outcome.step < 30
    assert not list_committed(open_store(job.store))


def test_a_newer_attempt_is_noticed_at_the_very_end(job: Job) -> None:
    settings = {"every_steps": None, "every_minutes": None}
    sink = MemorySink(taken_over=True)
    outcome = run_here(replace(job, config=configuration(30, checkpoints=settings)), sink)
    assert (outcome.status, outcome.step) == ("superseded", 30)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(job: Job, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-000000010").write_text("in the way")
    with pytest.raises((IgptError, OSError)):
        run_here(job, MemorySink())


def test_a_loss_that_is_no_number_ends_the_run_with_advice(job: Job) -> None:
    model = ImageGPT(MODEL)
    with torch.no_grad():
        model.wpe.weight[3] = float("nan")
    sink = MemorySink()
    with pytest.raises(IgptError, match=r"loss of step 1 is nan.*learning_rate"):
        run_here(job, sink, model)
    assert not sink.waiting
    assert not list_committed(open_store(job.store))


def test_a_model_of_another_shape_than_the_data_is_refused(job: Job) -> None:
    other = ImageGPT(ModelConfig(layers=1, width=8, heads=1, resolution=4, colors=17))
    with pytest.raises(UserError, match=r"4x4 images in 16 colours.*4x4 in 17"):
        run_here(job, MemorySink(), other)


@pytest.mark.parametrize("fits", [12, 6])
def test_a_resumed_run_tries_the_micro_batch_it_had_and_takes_what_fits(
    job: Job, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    run_here(replace(job, stop_at=1), MemorySink())
    asked = []

    def largest(worker: Worker, rows: int) -> int:
        asked.append(rows)
        return min(rows, fits)

    monkeypatch.setattr(Worker, "largest_micro_batch", largest)
    sink = MemorySink()
    run_here(replace(job, attempt=2, resume=True), sink)
    assert asked == [12]
    assert dict(sink.events)["training-resumed"]["micro_batch"] == fits


def test_a_checkpoint_of_another_model_is_refused(job: Job) -> None:
    run_here(replace(job, stop_at=1), MemorySink())
    other = ImageGPT(ModelConfig(layers=1, width=16, heads=2, resolution=4, colors=16))
    with pytest.raises(UserError, match="another model"):
        run_here(replace(job, resume=True, attempt=2), MemorySink(), other)


def test_ranks_without_a_process_group_are_refused(job: Job) -> None:
    with pytest.raises(IgptError, match="told that it is rank 1 of 2"):
        run_here(job, MemorySink(), rank=1, world_size=2)
