"""Trials on Ray Tune: on a Ray of their own, or on a cluster that is there already."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from igpt.clusters import cancel, resume, submit
from igpt.clusters.slurm.ray_daemon import (
    Daemon,
    Ports,
    RayNode,
    daemon,
    environment,
    free_ports,
    is_free,
)
from igpt.config import load
from igpt.jobs import find_job
from igpt.runs import Run
from igpt.runs.logs import log_parts
from igpt.runs.state import RunState
from igpt.storage import Store
from tests.support import study

pytestmark = pytest.mark.timeout(400)

#: What a trial sees goes into a file of its own; the rest is what the caller sees.
_CALLER = """
import json, os, signal, sys, time
from pathlib import Path
from igpt.sweeps import ray_tune
from igpt.sweeps.ray_tune import run_trials

ray_tune._TELL_SECONDS = 0.1
folder = Path(sys.argv[1])
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))

def trial(number):
    begun = time.time()
    if number == 1:
        raise ValueError("one is wrong")
    time.sleep(0.3)
    seen = {"begun": begun, "ended": time.time(), "key": os.environ.get("AWS_SECRET_ACCESS_KEY")}
    (folder / f"{number}.json").write_text(json.dumps(seen))

def finished(number, host):
    done.append([number, host])
    os.kill(os.getpid(), signal.SIGTERM)

done, signs = [], []
errors = run_trials(
    trial,
    [0, 1, 2, 3],
    cpus=1,
    dashboard=False,
    stop=lambda: False,
    finished=finished,
    waiting=lambda: signs.append(len(done)),
)
time.sleep(4)  # Ray's own handler would abort the process three seconds after a TERM
errors = [f"{type(error).__name__}: {error}" for error in errors]
print(json.dumps({"done": done, "errors": errors, "heard": heard, "signs": signs}))
"""


def called(folder: Path, **variables: str) -> dict[str, Any]:
    """What comes of four trials, one at a time, the second of which raises."""
    done = call(folder, **variables)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def failed(folder: Path, address: str) -> str:
    """What is said of a cluster that cannot be joined."""
    done = call(folder, RAY_ADDRESS=address)
    assert done.returncode == 1, done.stdout
    return done.stderr


def call(folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    folder.mkdir()
    return subprocess.run(
        [sys.executable, "-c", _CALLER, str(folder)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Daemon, dict[str, str]]]:
    """A Ray cluster of one node and two CPUs, and the variables with which it is found."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    ports = Ports(*free_ports(str(tmp_path), 3, is_free))
    node = RayNode("127.0.0.1", cpus=2, gpus=0, role=ports)
    with daemon(node, token, tmp_path / "logs") as running:
        study.until(lambda: running.started or running.ended, "Ray starts", 120)
        assert running.started, running.last_words()
        yield running, {"RAY_ADDRESS": f"127.0.0.1:{ports.head}", **environment(token)}


def test_trials_run_on_the_cluster_that_the_environment_names_and_leave_it_there(
    cluster: tuple[Daemon, dict[str, str]], tmp_path: Path
) -> None:
    running, variables = cluster
    secret = secrets.token_hex(16)
    folder = tmp_path / "trials"
    said = called(folder, **variables, AWS_SECRET_ACCESS_KEY=secret)
    assert [number for number, _ in said["done"]] == [0, 2, 3]
    assert said["errors"] == ["ValueError: one is wrong"]
    assert len(said["heard"]) == 3  # a signal is ours, with Ray or without
    assert 0 in said["signs"]  # before any trial has ended
    seen = [json.loads((folder / f"{number}.json").read_text()) for number in (0, 2, 3)]
    assert all(one["ended"] <= other["begun"] for one, other in pairwise(seen))
    # The cluster has two CPUs, and credentials of its own.
    assert {one["key"] for one in seen} == {None}
    assert not running.ended
    again = called(tmp_path / "again", **variables)
    assert len(again["done"]) == 3
    running.stop()
    logs = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(secret.encode() in data for data in logs)


def test_a_cluster_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    (port,) = free_ports(str(tmp_path), 1, is_free)
    refused = failed(tmp_path / "trials", f"127.0.0.1:{port}")
    assert f"IgptError: no Ray cluster can be joined at 127.0.0.1:{port}: " in refused


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_that_is_not_a_clusters_head_is_the_users_error(
    tmp_path: Path, address: str
) -> None:
    assert f"UserError: RAY_ADDRESS is '{address}'" in failed(tmp_path / "trials", address)


def sweep(store: Store, *overrides: str) -> Run:
    """Submits a probe of raw pixels that takes a while, to the local cluster."""
    job = find_job("probe")
    config = load(job.config, "job: probe", "test.yaml", overrides)
    here = study.cluster(workers=2, max_parallel=9)
    return submit(store, job, config, here, folder=Path("/"), arguments=["test"]).run


@pytest.mark.long
def test_a_sweep_on_this_machine_that_is_cancelled_goes_on_from_its_layers(root: Store) -> None:
    trained = study.start(root, study.cluster(max_parallel=9), "schedule.steps=10")
    assert study.ended(trained, 240).state is RunState.FINISHED
    slow = (f"seeds={list(range(1, 9))}", "budgets=[20,40]", "ray.cpus=1")
    run = sweep(root, f"model={trained.id}", *slow)
    done = study.until(lambda: run.record.children("probe/layers"), "a layer is done", 240)
    cancel(run)
    assert study.ended(run, 120).state is RunState.CANCELLED
    said = b"".join(run.record.get(part.key) for part in log_parts(run.record, 1))
    assert b"stopped as asked; finished pieces are kept" in said
    kept = {
        key: run.record.get(f"probe/layers/{key}") for key in run.record.children("probe/layers")
    }
    assert set(done) <= set(kept)
    assert len(kept) < 7
    resume(run)
    assert study.ended(run, 300).state is RunState.FINISHED
    assert len(run.record.children("probe/layers")) == 7
    assert kept == {key: run.record.get(f"probe/layers/{key}") for key in kept}
    assert [claim.workers for claim in run.claims()] == [1, 1]  # Ray is its other worker


def test_what_a_layer_finds_wrong_is_the_users_to_mend_and_is_not_tried_again(root: Store) -> None:
    trained = study.start(root, study.cluster(max_parallel=9), "schedule.steps=10")
    assert study.ended(trained, 240).state is RunState.FINISHED
    # What was there at submission may be gone since.
    run = sweep(root, f"model={trained.id}", "subjects=[raw pixels]", "budgets=[40]")
    root.delete(["data/digits/samples.parquet"])
    ended = study.ended(run, 240)
    assert (ended.state, ended.exit_code) == (RunState.FAILED, 2)
    assert ended.reason.startswith("user-error: 1 of 1 layers failed; the cause: ")
    assert len(run.claims()) == 1
