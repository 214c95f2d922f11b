"""What `--json` prints is what docs/schemas/ says, verb by verb, from real runs."""

import inspect
import json
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from igpt.cli.app import VERBS
from igpt.clusters.dashboard import Dashboard, write_dashboard
from igpt.runs import find_run
from igpt.storage import Store
from tests.cli.command import igpt
from tests.support import study
from tests.support.schemas import SCHEMAS, schema, validated

PRETRAIN = [
    *("pretrain", "data=data/digits", "model.preset=null", "model.layers=1", "model.width=8"),
    *("model.heads=1", "batch.global=12", "validation.every=10", "checkpoints.every_steps=5"),
    "schedule.warmup=2",
]
SHORT, LONG = [*PRETRAIN, "schedule.steps=10"], [*PRETRAIN, "schedule.steps=1000000"]


def test_every_verb_that_prints_json_has_a_schema_and_no_other_has() -> None:
    printing = {
        verb
        for verb in VERBS
        if "as_json" in inspect.signature(import_module(f"igpt.cli.{verb}").command).parameters
    }
    assert {path.stem for path in SCHEMAS.iterdir()} == printing | {"quickstart"}


@pytest.mark.parametrize("verb", sorted(path.stem for path in SCHEMAS.iterdir()))
def test_every_schema_is_one_and_is_strict(verb: str) -> None:
    Draft202012Validator.check_schema(schema(verb))
    for unknown in ({"unknown": 1}, [{"unknown": 1}]):
        with pytest.raises(ValidationError):
            Draft202012Validator(schema(verb)).validate(unknown)


class Commands:
    """Runs verbs for real and validates what they print."""

    def __init__(self, root: Store, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.validated: set[str] = set()

    def __call__(self, verb: str, *arguments: str) -> Any:
        ended = igpt(verb, *arguments, "--json", folder=self.folder, store=self.store(verb))
        assert ended.returncode == 0, (verb, ended.stderr)
        return self.check(verb, ended.stdout)

    def check(self, verb: str, text: str) -> Any:
        document = validated(verb, text)
        self.validated.add(verb)
        for one in document if isinstance(document, list) else [document]:
            changed = one | {"unknown": 1}
            text = json.dumps([changed] if isinstance(document, list) else changed)
            with pytest.raises(ValidationError):
                validated(verb, text)
        return document

    def store(self, verb: str) -> str | None:
        return None if verb == "init" else self.root.uri


def test_every_verb_prints_what_its_schema_says(root: Store, tmp_path: Path) -> None:
    run = Commands(root, tmp_path)
    assert run("init", "recipes")["written"]
    assert run("list") == []
    assert run("doctor")["failed"] == 0
    assert run("plan", *SHORT)["facts"]
    assert not run("submit", *SHORT, "--dry-run")["created"]

    short = run("submit", *SHORT)["run"]
    watched = igpt("watch", short, "--json", folder=tmp_path, store=root.uri)
    assert watched.returncode == 0, watched.stderr
    looks = [run.check("watch", line) for line in watched.stdout.splitlines()]
    assert looks[-1]["state"] == "finished"
    assert looks[-1]["attempts"][0]["outcome"] == "finished"
    assert run("status", short)["result"]["step"] == 10
    assert run("submit", *SHORT, "--follow")["state"] == "finished"
    assert any("steps 10/10" in line["text"] for line in run("logs", short)["lines"])
    assert Path(run("report", short)["report"]).exists()

    (tmp_path / "brisk.yaml").write_text("kind: local\nthreads: 1\nheartbeat_seconds: 0.3\n")
    long = run("submit", *LONG, "--cluster", "brisk.yaml")["run"]
    working = find_run(root, long)
    study.reached(working, 5)
    study.until(lambda: (beat := working.heartbeat()) and beat.progress, "it says how far it is")
    listed = {row["run"]: row for row in run("list")}
    assert listed[long]["progress"]["total"] == 1000000
    assert listed[short]["progress"] == {}
    assert {row["run"] for row in first_look(root, tmp_path, run)["runs"]} == {short, long}
    assert run("status", long)["last_checkpoint"]["step"] >= 5
    write_dashboard(working, 1, Dashboard("node-7", "192.0.2.7"))
    assert not run("dashboard", long)["stale"]
    assert run("cancel", long, "--wait")["state"] == "cancelled"
    assert run("resume", long)["step"] >= 5
    assert run("cancel", long, "--wait")["state"] == "cancelled"
    assert run("delete", long, "--yes")["objects"] > 0

    sweep = run("sweep", "probe", f"model={short}", "budgets=[all]")["run"]
    run("cancel", sweep, "--wait")
    verbs = {path.stem for path in SCHEMAS.iterdir()}
    assert run.validated == verbs - {"quickstart"}  # whose last line tests/test_readme.py checks


def first_look(root: Store, folder: Path, run: Commands) -> Any:
    """The first line of `watch` without a run, which goes on until it is interrupted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "igpt.cli", "watch", "--json", "--store", root.uri],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.communicate()
    return run.check("watch", line)
