"""What the small pieces of the entries promise."""

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from igpt.config import load
from igpt.data import ArraySource, Palette, open_dataset, open_source, write_shards
from igpt.errors import (
    DataCorrupt,
    IgptError,
    NotFound,
    PeerFailed,
    Superseded,
    Unreachable,
    UserError,
)
from igpt.evaluation import open_features
from igpt.jobs.base import Preparation, find_job
from igpt.jobs.context import Context, RunSink, Stopped, progress_file
from igpt.jobs.entries import features, pretrain, shard
from igpt.jobs.entries.common import pick_device
from igpt.jobs.entries.features import make_features
from igpt.jobs.entries.generate import contact_sheet
from igpt.jobs.explaining import explain
from igpt.jobs.features import FeaturesConfig
from igpt.jobs.pretrain import PretrainConfig
from igpt.jobs.shard import ShardConfig
from igpt.model.config import ModelConfig
from igpt.model.interchange import export_huggingface
from igpt.model.transformer import ImageGPT
from igpt.report.study import collect
from igpt.runs import Run, create_run
from igpt.runs import events as ev
from igpt.runs.attempts import Claim, claim
from igpt.runs.failures import FailureClass
from igpt.runs.record import open_run
from igpt.storage import Store
from tests.support import study

torch.set_num_threads(1)  # whatever else the machine does


@pytest.fixture
def model(root: Store, tmp_path: Path) -> str:
    """A small network for the digits, as an exported folder."""
    data = open_dataset(root.sub("data/digits"))
    shape = ModelConfig(layers=1, width=8, heads=1, resolution=8, colors=data.index.colors)
    export_huggingface(ImageGPT(shape, seed=1), data.palette(), tmp_path / "model")
    return str(tmp_path / "model")


def context(
    root: Store, attempt: int, stop: Callable[[], bool], name: str = "tiny", **inputs: str
) -> Context:
    """The only rank of an attempt at something with the digits, and what else is named."""
    run = open_run(root, f"{name}-1a2b3c4d")
    given = json.dumps({"data": open_dataset(root.sub("data/digits")).digest, **inputs})
    run.record.put("spec.yaml", f"job: x\nname: x\nconfig: {{}}\ninputs: {given}\n".encode())
    owned = Claim(attempt, "1", "n1", 1, 0.0)
    return Context(run, owned, 0, 1, 0, stop, RunSink(run, attempt, None, 0))


def pieces(found: Context) -> list[tuple[int | None, int]]:
    """Of each attempt, how many finished pieces it has found."""
    return [(event.attempt, event.fields["there"]) for event in found.run.events({ev.PIECES})]


def test_features_say_where_their_pieces_are_before_they_begin(root: Store, model: str) -> None:
    config = FeaturesConfig(model=model, data="data/digits", splits=["train", "test"])
    asked = iter([False, True])
    first = context(root, 1, lambda: next(asked))
    with pytest.raises(Stopped):
        features.run(config, first)
    again = context(root, 2, lambda: False)
    made = features.run(config, again)
    (_, none), (_, some) = pieces(again)
    assert none == 0 < some < len(root.sub(made["features"]).objects())


def test_shards_say_where_their_pieces_are_before_they_begin(root: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (0, 0, ord(name))).save(tmp_path / "images" / name / "1.png")
    source = f"folder:{tmp_path / 'images'}"
    config = ShardConfig(source=source, output="data/new", resolution=4, colors=2, validation=0)
    looks = itertools.count()
    first = context(root, 1, lambda: next(looks) > 1, source=open_source(source).digest)
    with pytest.raises(Stopped):
        shard.run(config, first)
    again = context(root, 2, lambda: False, source=open_source(source).digest)
    shard.run(config, again)
    (_, none), (_, some) = pieces(again)
    assert none == 0 < some < len(root.sub("data/new").objects())


def test_a_contact_sheet_shows_every_image_with_its_own_pixels() -> None:
    images = np.zeros((9, 4, 4, 3), np.uint8)
    images[8] = (10, 20, 30)
    sheet = Image.open(io.BytesIO(contact_sheet(images, columns=8)))
    scale = sheet.width // (8 * 5 + 1)
    small = np.asarray(sheet.resize((sheet.width // scale, sheet.height // scale), 0))
    assert (small[1:5, 1:5] == 0).all()
    assert (small[6:10, 1:5] == (10, 20, 30)).all()
    assert (small[6:10, 6:10] == 255).all()


def test_a_device_that_is_not_there_is_refused_when_it_was_asked_for() -> None:
    assert pick_device("cpu", 0) == torch.device("cpu")
    if not torch.cuda.is_available():
        assert pick_device("auto", 0) == torch.device("cpu")
        with pytest.raises(UserError, match="cuda"):
            pick_device("cuda", 0)


def test_a_feature_pass_is_stopped_within_a_chunk(root: Store, tmp_path: Path) -> None:
    config = ModelConfig(layers=1, width=8, heads=2, resolution=8, colors=16)
    data = open_dataset(root.sub("data/digits"))
    run = open_run(root, "tiny-1a2b3c4d")
    asked = iter([False, False, True])

    def make(stop: Callable[[], bool]) -> str:
        sink = RunSink(run, 1, tmp_path, 0)
        context = Context(run, Claim(1, "alone", "here", 1, 0.0), 0, 1, 0, stop, sink)
        return make_features(
            context,
            ImageGPT(config),
            data,
            ["train"],
            batch=8,
            device=torch.device("cpu"),
            report=lambda done, total: sink.progress(done=done, total=total, unit="images"),
        )

    with pytest.raises(Stopped):
        make(lambda: next(asked))
    assert json.loads(progress_file(tmp_path, 0).read_text())["done"] == 16
    assert root.objects("features/") == []
    assert open_features(root.sub(make(lambda: False))).samples("train") == data.samples("train")


@pytest.mark.parametrize(
    ("error", "code", "failure"),
    [
        (UserError("x"), 2, FailureClass.USER_ERROR),
        (NotFound("x"), 2, FailureClass.USER_ERROR),
        (Unreachable("x"), 3, FailureClass.STORAGE),
        (DataCorrupt("x"), 1, FailureClass.CORRUPT),
        (OSError(28, "No space left on device"), 3, FailureClass.STORAGE),
        (Superseded("x"), 6, None),
        (MemoryError(), 1, FailureClass.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("x"), 1, FailureClass.OUT_OF_MEMORY),
        (IgptError("the loss of step 3 is nan"), 1, FailureClass.CRASH),
        (KeyError("x"), 1, FailureClass.CRASH),
        (RuntimeError("shape [3] is invalid"), 1, FailureClass.CRASH),
        # What another rank's end does to this one has no class of its own.
        (PeerFailed("rank 0 could not write a checkpoint; its own log says why"), 1, None),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]"), 1, None),
        (RuntimeError("NCCL error: ncclRemoteError: A call failed"), 1, None),
        (Unreachable("the server: Connection reset by peer"), 3, FailureClass.STORAGE),
    ],
)
def test_the_class_of_an_error(error: Exception, code: int, failure: FailureClass | None) -> None:
    assert explain(error)[:2] == (code, failure)


def recorded(store: Store) -> tuple[Run, PretrainConfig]:
    """A record of a short pretraining of `data/digits`, and its configuration."""
    job = find_job("pretrain")
    given = load(job.config, study.TRAINING, "t.yaml", ["schedule.steps=6"])
    prepared = job.prepare(given, Preparation(store, Path("/"), 1))
    run, _ = create_run(
        store,
        job="pretrain",
        name="tiny",
        config=prepared.config.model_dump(mode="json", by_alias=True),
        inputs=prepared.inputs,
        status=Run.status,
    )
    assert isinstance(prepared.config, PretrainConfig)
    return run, prepared.config


def attempt_of(run: Run, number: int, start: tuple[int, int] | None = None) -> Context:
    """An attempt that has claimed the run, from the checkpoint of (step, attempt)."""
    step, attempt = start or (0, None)
    owned = Claim(number, "a", "host", 1, 0.0, step, attempt)
    assert claim(run.record, owned)
    return Context(run, owned, 0, 1, 0, lambda: False, RunSink(run, number, None, 0))


def test_a_data_set_without_a_validation_split_is_trained_on_to_the_end(store: Store) -> None:
    images = np.random.default_rng(0).integers(256, size=(40, 8, 8, 3)).astype(np.uint8)
    write_shards(
        ArraySource(images),
        store.sub("data/digits"),
        resolution=8,
        palette=Palette.fit(images.reshape(-1, 3), 16),
        validation_fraction=0.0,
    )
    run, config = recorded(store)
    result = pretrain.run(config, attempt_of(run, 1))
    assert result["step"] == 6
    assert (result["validation_loss"], result["unigram_entropy"]) == (None, None)
    assert collect(run).training.palette_entropy is None


def test_a_result_that_an_attempt_makes_up_for_names_the_checkpoint_that_there_is(
    root: Store,
) -> None:
    run, config = recorded(root)
    first = pretrain.run(config, attempt_of(run, 1))  # and is killed before its result is there
    again = pretrain.run(config, attempt_of(run, 2, start=(6, 1)))
    assert again == first
    assert run.record.exists(f"{again['checkpoint']}/COMMITTED")
    assert again["loss"] is not None
