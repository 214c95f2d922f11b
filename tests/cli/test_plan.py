"""`igpt-jobs plan`: what it shows of each job, on what it refuses, and that it touches nothing."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from igpt.data import open_dataset
from igpt.model.config import ModelConfig
from igpt.model.interchange import export_huggingface
from igpt.model.transformer import ImageGPT
from igpt.storage import Store
from tests.cli.command import igpt
from tests.support import study

PRETRAIN = ("pretrain", "data=data/digits", "model.preset=igpt-s", "schedule.warmup=100")
TINY = ("model.preset=null", "model.layers=2", "model.width=32", "model.heads=2")
GPU = "kind: local\nworkers: 8\ndevice: {name: NVIDIA H100 80GB HBM3}\n"


def planned(root: Store, folder: Path, *arguments: str) -> dict[str, Any]:
    """The document of a plan; fails where it wrote anything."""
    before = root.objects()
    ended = igpt("plan", *arguments, "--json", folder=folder, store=root.uri)
    assert ended.returncode == 0, ended.stderr
    assert root.objects() == before
    document: dict[str, Any] = json.loads(ended.stdout)
    assert set(document) == {"facts", "warnings", "notes", "numbers"}
    return document


@pytest.fixture
def model(root: Store, tmp_path: Path) -> str:
    """A small network for the digits, as an exported folder."""
    shape = ModelConfig(layers=3, width=8, heads=2, resolution=8, colors=16)
    palette = open_dataset(root.sub("data/digits")).palette()
    export_huggingface(ImageGPT(shape), palette, tmp_path / "model")
    return "model=./model"


def test_a_pretraining_on_a_named_device_is_reckoned_to_the_end(
    root: Store, tmp_path: Path
) -> None:
    (tmp_path / "gpu.yaml").write_text(GPU)
    document = planned(root, tmp_path, *PRETRAIN, "--cluster", "gpu.yaml", "--upload", "200")
    numbers = document["numbers"]
    assert numbers["job"] == "pretrain"
    assert (numbers["workers"], numbers["steps"]) == (8, 1_000_000)
    assert numbers["epochs"] == pytest.approx(128e6 / 180)
    assert numbers["parameters"] == 75_572_224
    assert numbers["checkpoint_bytes"] == 12 * 75_572_224
    assert numbers["checkpoint_seconds"] == pytest.approx(12 * 75_572_224 / 200e6)
    assert numbers["speed_source"] == "assumed"
    assert numbers["worker_hours"] > 0
    assert numbers["disk_free_bytes"] > 0
    assert list(document["facts"]) == [
        *("model", "data", "work", "memory", "checkpoints", "disk", "speed", "time")
    ]


def test_what_an_earlier_run_measured_is_taken(root: Store, tmp_path: Path) -> None:
    run = study.start(root, study.cluster(workers=2))
    study.ended(run)
    numbers = planned(root, tmp_path, *PRETRAIN, *TINY)
    assert numbers["numbers"]["speed_source"] == "measured"
    assert run.id in numbers["facts"]["speed"]
    assert run.id in numbers["facts"]["checkpoints"]
    rates = [
        line["tokens_per_second"]
        for part in run.record.children("attempts/0001")
        if part.startswith("metrics-")
        for line in map(json.loads, run.record.get(f"attempts/0001/{part}").splitlines())
        if "tokens_per_second" in line
    ]
    each = numbers["numbers"]["tokens_per_second_per_worker"]
    assert min(rates) / 2 <= each <= max(rates) / 2


def test_features_are_held_against_the_disk(root: Store, tmp_path: Path, model: str) -> None:
    document = planned(root, tmp_path, "features", model, "data=data/digits")
    assert document["numbers"]["feature_bytes"] == 2 * 4 * 300 * 8
    assert document["numbers"]["disk_bytes"] == 2 * 4 * 300 * 8
    assert document["numbers"]["disk_free_bytes"] > 0


def test_the_fits_of_a_sweep_are_counted(root: Store, tmp_path: Path, model: str) -> None:
    sweep = ("probe", model, "data=data/digits", "budgets=[40,all]", "l2=[1.0,0.1]")
    document = planned(root, tmp_path, *sweep, "seeds=[1,2,3]")
    assert document["numbers"]["trials"] == 4 + 4 + 1
    assert document["numbers"]["fits"] == 9 * ((3 + 1) * 2 + 1)
    assert document["numbers"]["feature_bytes"] == 2 * 2 * 4 * 300 * 8
    pixels = planned(root, tmp_path, *sweep, "subjects=[raw pixels]", "seeds=[1,2,3]")
    assert pixels["numbers"]["trials"] == 1
    assert "feature_bytes" not in pixels["numbers"]


def test_shards_and_drawings_have_a_plan(root: Store, tmp_path: Path, model: str) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 20, 30)).save(tmp_path / "pictures" / f"{number}.png")
    shards = planned(root, tmp_path, "shard", "source=folder:pictures", "output=data/x", "crops=2")
    assert shards["numbers"]["disk_bytes"] == 3 * 2 * 4096
    drawn = planned(root, tmp_path, "generate", model, "data=data/digits", "samples=5")
    assert drawn["numbers"]["images"] == 5 + 8 * 4
    assert drawn["numbers"]["images_at_once"] == 8


def test_off_a_terminal_there_are_plain_lines(root: Store, tmp_path: Path) -> None:
    ended = igpt("plan", *PRETRAIN, "model.preset=igpt-l", folder=tmp_path, store=root.uri)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "\x1b" not in ended.stdout
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["model", "data", "work"]
    assert all(len(line.split()) > 1 for line in lines)


def test_on_a_terminal_there_is_a_table_with_its_warnings(root: Store, tmp_path: Path) -> None:
    (tmp_path / "gpu.yaml").write_text(GPU)
    ours, theirs = pty.openpty()
    plan = subprocess.Popen(
        [
            *(sys.executable, "-m", "igpt.cli", "plan", *PRETRAIN, "model.preset=igpt-xl"),
            *("--cluster", "gpu.yaml", "--store", root.uri),
        ],
        cwd=tmp_path,
        stdout=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := _read(ours):
            shown += chunk
        assert plan.wait(timeout=60) == 0
    finally:
        plan.kill()
        plan.wait()
        os.close(ours)
    assert b"31mwarning" in shown
    assert b"before its first image" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # how a terminal ends on Linux
        return b""


def test_planning_loads_nothing_heavy(root: Store, tmp_path: Path, model: str) -> None:
    heavy = ("torch", "ray", "submitit", "scipy", "sklearn", "matplotlib", "pyarrow", "boto3")
    probe = ("probe", model, "data=data/digits", "budgets=[40,all]")
    labels = "pyarrow"  # the probe reads them
    for arguments, needed in (
        (PRETRAIN, ""),
        (probe, labels),
        (("features", model, "data=data/digits"), ""),
    ):
        code = (
            "import sys\n"
            f"sys.argv = ['igpt-jobs', 'plan', '--store', {root.uri!r}, *{arguments!r}]\n"
            "from igpt.cli import main\n"
            "try:\n"
            "    main()\n"
            "except SystemExit as end:\n"
            "    assert not end.code, end.code\n"
            f"print('LOADED', *[name for name in {heavy!r} if name in sys.modules])\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert ended.stdout.splitlines()[-1] == f"LOADED {needed}".strip()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("pretrian",), 2, 'did you mean "pretrain"?'),
        ((*PRETRAIN, "optimizer.learning_rat=1.0"), 2, 'did you mean "learning_rate"?'),
        ((*PRETRAIN, "data=data/digitz"), 4, "data/digitz"),
        ((*PRETRAIN, "--cluster", "locl"), 2, 'did you mean "local"?'),
        ((*PRETRAIN, "--upload", "0"), 2, "--upload"),
        ((*PRETRAIN, "batch.global=2", "--cluster", "gpu.yaml"), 2, "8 workers cannot share"),
        ((*PRETRAIN, "--cluster", "wrong.yaml"), 2, "wrong.yaml, line 2"),
        (("features",), 4, "no finished pretraining run"),
        ((), 2, "Missing argument"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    root: Store, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "gpu.yaml").write_text(GPU)
    (tmp_path / "wrong.yaml").write_text("kind: local\ndevice: {memory_gb: -1}\n")
    ended = igpt("plan", *arguments, folder=tmp_path, store=root.uri)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_store_that_cannot_be_reached_is_said_to_be(
    root: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("IGPT_S3_ENDPOINT", "http://127.0.0.1:9")
    ended = igpt("plan", *PRETRAIN, folder=tmp_path, store="s3://bucket/study")
    assert ended.returncode == 3, ended.stderr
    assert "127.0.0.1:9" in ended.stderr
