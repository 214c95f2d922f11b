"""A whole study by its commands alone in a bucket of a real S3 server.

The README's commands, which a test runs as well, have one in a folder.
"""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from igpt.clusters.local.place import supervisor_file
from igpt.runs import find_run
from igpt.storage import Store, open_store
from tests.cli.command import igpt
from tests.support import study
from tests.support.s3_server import S3Server

PRETRAIN = [
    *("model.preset=null", "model.layers=2", "model.width=16", "model.heads=2"),
    *("schedule.steps=20", "schedule.warmup=2", "batch.global=16", "validation.every=10"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of real digits with three splits."""
    folder = tmp_path_factory.mktemp("images")
    digits = load_digits()
    for number in range(240):
        split = ("train", "train", "validation", "test")[number // 10 % 4]
        place = folder / split / str(digits.target[number])
        place.mkdir(parents=True, exist_ok=True)
        grey = (digits.images[number] * 15.9).astype(np.uint8)
        Image.fromarray(np.stack([grey, 255 - grey, grey], -1)).save(place / f"{number:04}.png")
    return folder


@pytest.fixture
def place(s3_bucket: str) -> Iterator[Store]:
    """The store of the study."""
    store = open_store(f"{s3_bucket}/study")
    with study.cleaned(store):
        yield store


@pytest.mark.long
def test_shards_pretraining_probes_samples_and_report(
    place: Store, images: Path, tmp_path: Path
) -> None:
    def run(*arguments: str) -> str:
        ended = igpt(*arguments, folder=tmp_path, store=place.uri)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    (tmp_path / "two.yaml").write_text("kind: local\nworkers: 2\nthreads: 1\n")
    two = ["--cluster", "two.yaml", "--follow"]
    source = [f"source=folder:{images}", "output=data/digits", "resolution=8", "colors=16"]
    run("submit", "shard", *source, "samples_per_shard=50", *two)
    run("submit", "pretrain", "data=data/digits", *PRETRAIN, *two)
    run("submit", "features", *two)
    run("submit", "generate", "samples=4", "completions=2", "--follow")
    probe = ["budgets=[20,all]", "seeds=[1,2]", "l2=[0.1,0.001]", "layers=[0,2]"]
    run("sweep", "probe", *probe, "--follow")

    listed = {
        entry["run"].rpartition("-")[0]: entry["state"]
        for entry in json.loads(run("list", "--json"))
    }
    jobs = ["shard", "pretrain", "features", "generate", "probe"]
    assert listed == dict.fromkeys(jobs, "finished")

    status = json.loads(run("status", "pretrain", "--json"))
    assert status["result"]["step"] == 20
    assert status["last_checkpoint"]["step"] == 20
    assert "steps 20/20" in run("logs", "pretrain")

    result = json.loads(run("status", "probe", "--json"))["result"]
    chosen = {(one["subject"], one["budget"]) for one in result["selections"]}
    subjects = ("trained", "untrained", "raw pixels")
    assert chosen == {(subject, budget) for subject in subjects for budget in (20, "all")}
    # Every cell is there: 5 layers of 3 subjects, 2 strengths, 2 seeds of 20 labels and all labels.
    assert result["rows"] == 5 * 2 * 3

    features = (find_run(place, "features").result() or {})["features"]
    assert {"train.json", "validation.json", "test.json"} <= set(place.children(features))
    # The sweep found those of the trained network, and made those of the untrained one.
    assert len(place.children("features")) == 2

    made = find_run(place, "generate").record
    assert {"samples.png", "completions.png", "originals.npy"} <= set(made.children("samples"))

    run("report", "pretrain", "-o", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert find_run(place, "pretrain").id in page
    # A second submission of the same work starts nothing.
    again = json.loads(run("submit", "generate", "samples=4", "completions=2", "--json"))
    assert again["created"] is False


def test_no_credential_is_written_anywhere(
    s3_bucket: str, images: Path, tmp_path: Path, s3_server: S3Server
) -> None:
    store = open_store(f"{s3_bucket}/study")
    with study.cleaned(store):
        source = [f"source=folder:{images}", "output=data/digits", "resolution=8", "colors=16"]
        ended = igpt("submit", "shard", *source, "--follow", folder=tmp_path, store=store.uri)
        assert ended.returncode == 0, ended.stderr
        secret = s3_server.environment()["AWS_SECRET_ACCESS_KEY"].encode()
        for info in store.objects("runs/"):
            assert secret not in store.get(info.key), info.key
        for path in (tmp_path / "home").rglob("*"):
            assert path.is_dir() or secret not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "credentials"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "127.0.0.1:9"),
    ],
)
def test_a_store_that_cannot_be_reached_is_exit_code_3(
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    hint: str,
) -> None:
    monkeypatch.setenv(name, value)
    ended = igpt("list", folder=tmp_path, store=f"{s3_bucket}/study")
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    assert hint in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_missing_bucket_is_exit_code_3(s3_bucket: str, tmp_path: Path) -> None:
    ended = igpt("list", folder=tmp_path, store="s3://no-such-bucket-here/study")
    assert ended.returncode == 3, ended.stderr
    assert "no-such-bucket-here" in ended.stderr


@pytest.mark.long
def test_a_run_outlives_a_server_that_is_away_for_a_while(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from igpt.storage.s3_client import forget_clients

    server = S3Server(tmp_path_factory.mktemp("away") / "server")
    try:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        forget_clients()
        store = open_store(f"s3://{server.make_bucket()}/study")
        study.write_digits(store)
        with study.cleaned(store):
            run = study.start(store, study.cluster(), "schedule.steps=300")
            study.reached(run, 10)
            log = supervisor_file(run, 1, "log")
            server.process.send_signal(signal.SIGSTOP)
            try:
                study.until(lambda: "cannot be reached" in log.read_text(), "it notices", 90)
            finally:
                server.process.send_signal(signal.SIGCONT)
            study.until(run.result, "it finishes all the same", 240)
            assert study.ended(run).state is study.FINISHED
            assert sorted(study.losses(run)) == list(range(1, 301))
    finally:
        server.stop()
        forget_clients()
        shutil.rmtree(server.folder, ignore_errors=True)
