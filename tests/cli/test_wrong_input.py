"""A user's mistakes: exit code 2, where and what and how to mend it, nothing started."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt.clusters.files import parse_cluster
from igpt.config import read_yaml
from igpt.data import Palette, open_dataset
from igpt.errors import UserError
from igpt.model.config import ModelConfig
from igpt.model.interchange import export_huggingface
from igpt.model.transformer import ImageGPT
from igpt.storage import Store
from tests.cli.command import igpt

MODEL = ["model.preset=null", "model.layers=1", "model.width=8", "model.heads=1"]
PRETRAIN = ["submit", "pretrain", "data=data/digits", *MODEL, "schedule.steps=2"]


def refused(root: Store, folder: Path, *arguments: str, code: int = 2) -> str:
    """What the command says; fails unless it refused with this code and started nothing."""
    ended = igpt(*arguments, folder=folder, store=root.uri)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert root.children("runs") == []
    assert root.children("index") == []
    return ended.stderr


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images, each a class of its own."""
    folder = tmp_path / "images"
    for number in range(3):
        (folder / f"class{number}").mkdir(parents=True)
        pixels = np.full((8, 8, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"class{number}" / "one.png")
    return folder


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["optimiser.learning_rate=1.0"], ["unknown key", 'did you mean "optimizer"?']),
        (["sync-every=5"], ["unknown key 'sync-every'", 'did you mean "sync_every"?']),
        (["optimizer.learning_rat=1.0"], ['did you mean "learning_rate"?']),
        (["schedule.steps=many"], ["schedule.steps", "valid integer", "many"]),
        (["optimizer.learning_rate=-0.1"], ["override optimizer.learning_rate", "greater than 0"]),
        (["model.preset=igpt-x"], ["igpt-x", "igpt-xl"]),
        (["model.resolution=32"], ["32x32", "8x8", "submit shard resolution=32"]),
        (["palette=0123456789ab"], ["palette", "0123456789ab", "the same palette"]),
        (["data=data/digitz"], ["data/digitz", "index.json"]),
        (["name"], ["is not an assignment"]),
        (["model.heads=3"], ["width 8 is not a multiple of heads 3"]),
        (
            ["model.preset=igpt-s", "model.width=100", "model.heads=null"],
            ["width 100 is not a multiple of heads 8"],
        ),
        (["data=~nosuchuser/x"], ["~nosuchuser/x"]),
        (["--name", ""], ["'' cannot name a run", "--name"]),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_mend(
    root: Store, tmp_path: Path, overrides: list[str], parts: list[str]
) -> None:
    code = 4 if "data=data/digitz" in overrides else 2
    said = refused(root, tmp_path, *PRETRAIN, *overrides, code=code)
    for part in parts:
        assert part in said


def test_a_job_that_does_not_exist_offers_the_nearest(root: Store, tmp_path: Path) -> None:
    assert 'did you mean "pretrain"?' in refused(root, tmp_path, "submit", "pretrian")


def test_a_cluster_that_does_not_exist_offers_the_nearest(root: Store, tmp_path: Path) -> None:
    said = refused(root, tmp_path, *PRETRAIN, "--cluster", "locl.yaml")
    assert 'did you mean "local"?' in said


def test_a_kind_of_cluster_that_does_not_exist_offers_the_nearest(
    root: Store, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("kind: locale\nworkers: 1\n")
    said = refused(root, tmp_path, *PRETRAIN, "--cluster", "mine.yaml")
    assert "mine.yaml, line 1" in said
    assert 'did you mean "local"?' in said


@pytest.mark.parametrize("kind", ["[local]", "{local: 1}", "1", "true"])
def test_a_kind_of_cluster_that_is_no_name_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"mine.yaml, line 1: .* is not a kind of cluster"):
        parse_cluster(read_yaml(f"kind: {kind}", "mine.yaml"))


def test_a_file_with_a_mistake_is_named_with_its_line(root: Store, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("job: pretrain\ndata: data/digits\nmodle: {}\n")
    said = refused(root, tmp_path, "submit", "job.yaml")
    assert "job.yaml, line 3" in said
    assert 'did you mean "model"?' in said


def test_more_workers_than_rows_are_refused(root: Store, tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_text("kind: local\nworkers: 3\n")
    said = refused(root, tmp_path, *PRETRAIN, "batch.global=2", "--cluster", "wide.yaml")
    assert "3 workers cannot share a batch of 2 rows" in said


def test_an_empty_image_folder_is_refused(root: Store, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    said = refused(root, tmp_path, "submit", "shard", "source=folder:nothing", "output=data/x")
    assert "nothing" in said


def test_an_unreadable_image_is_named(root: Store, tmp_path: Path, images: Path) -> None:
    whole = (images / "class1" / "one.png").read_bytes()
    (images / "class1" / "broken.png").write_bytes(whole[: len(whole) // 2])
    said = refused(root, tmp_path, "submit", "shard", f"source=folder:{images}", "output=data/x")
    assert "broken.png" in said


def test_a_source_without_a_kind_says_which_was_meant(
    root: Store, tmp_path: Path, images: Path
) -> None:
    said = refused(root, tmp_path, "submit", "shard", f"source={images}", "output=data/x")
    assert f"source=folder:{images}" in said


def test_an_output_that_holds_another_data_set_is_refused(
    root: Store, tmp_path: Path, images: Path
) -> None:
    said = refused(
        root, tmp_path, "submit", "shard", f"source=folder:{images}", "output=data/digits"
    )
    assert "resolution is 8 there, 32 here" in said


def test_a_yaml_tag_that_would_run_code_is_refused(root: Store, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        f"job: pretrain\ndata: !!python/object/apply:os.system ['touch {tmp_path}/pwned']\n"
    )
    said = refused(root, tmp_path, "submit", "job.yaml")
    assert "job.yaml, line 2" in said
    assert not (tmp_path / "pwned").exists()


def test_a_store_that_cannot_be_written_is_refused(root: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    digits = f"{root.uri}/data/digits"
    arguments = ["data=" + digits if word.startswith("data=") else word for word in PRETRAIN]
    ended = igpt(*arguments, folder=tmp_path, store=str(tmp_path / "file" / "store"))
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert str(tmp_path / "file") in ended.stderr


def test_a_verb_that_does_not_exist_offers_the_nearest(root: Store, tmp_path: Path) -> None:
    ended = igpt("sumbit", folder=tmp_path)
    assert ended.returncode == 2
    assert 'did you mean "submit"?' in ended.stderr


def test_a_run_that_does_not_exist_is_not_found(root: Store, tmp_path: Path) -> None:
    for verb in ("status", "logs", "cancel", "resume", "delete", "report"):
        said = refused(root, tmp_path, verb, "nobody", code=4)
        assert "igpt-jobs list" in said


@pytest.mark.parametrize(
    "job", [["submit", "features"], ["submit", "generate"], ["sweep", "probe"]]
)
def test_an_address_of_a_model_of_another_palette_is_refused(
    root: Store, tmp_path: Path, job: list[str]
) -> None:
    other = Palette(np.linspace(-1, 1, 48, dtype=np.float32).reshape(16, 3))
    model = ImageGPT(ModelConfig(layers=1, width=8, heads=1, resolution=8, colors=16))
    export_huggingface(model, other, tmp_path / "model")
    said = refused(root, tmp_path, *job, "model=./model", "data=data/digits")
    assert other.digest[:12] in said
    assert "the same palette" in said


def test_splits_beside_what_is_none_are_refused(root: Store, tmp_path: Path, images: Path) -> None:
    (images / "class0").rename(images / "train")
    (images / "class1").rename(images / "test")
    said = refused(root, tmp_path, "submit", "shard", f"source=folder:{images}", "output=data/x")
    assert "holds the splits test, train, and the folder class2 beside them" in said
    assert "Move away what belongs to no split" in said


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["budgets=[5]"], ["5 labels", "10 classes"]),
        (["budgets=[100000]"], ["larger than the train split"]),
        (["l2=[0.0]"], ["greater than 0"]),
        (["subjects=[trainde]"], ["subjects"]),
        (["layers=most"], ["layers"]),
        (["seeds=[4294967296]"], ["seeds", "less than 4294967296"]),
    ],
)
def test_a_sweep_that_cannot_be_answered_is_refused(
    root: Store, tmp_path: Path, overrides: list[str], parts: list[str]
) -> None:
    data = open_dataset(root.sub("data/digits"))
    model = ImageGPT(ModelConfig(layers=1, width=8, heads=1, resolution=8, colors=16))
    export_huggingface(model, data.palette(), tmp_path / "model")
    said = refused(
        root, tmp_path, "sweep", "probe", "model=./model", "data=data/digits", *overrides
    )
    for part in parts:
        assert part in said


def test_a_drawing_of_nothing_and_a_seed_too_large_are_refused(root: Store, tmp_path: Path) -> None:
    said = refused(root, tmp_path, "submit", "generate", "samples=0", "completions=0")
    assert "there is nothing to draw" in said
    assert "seed" in refused(root, tmp_path, "submit", "generate", f"seed={10**30}")
    source = ("source=folder:x", "output=data/x")
    assert "seed" in refused(root, tmp_path, "submit", "shard", *source, f"seed={2**32}")
