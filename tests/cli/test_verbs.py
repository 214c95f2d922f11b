"""The verbs around a run: what they print, their exit codes, and that they leave nothing behind."""

import json
import os
import platform
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from igpt.clusters import status
from igpt.clusters.files import cluster_key
from igpt.clusters.local.place import process_started
from igpt.config import dump_yaml
from igpt.runs import Run, create_run, find_run
from igpt.runs import events as ev
from igpt.runs.events import write_event
from igpt.runs.state import RunState
from igpt.storage import Store, open_store
from tests.cli.command import igpt
from tests.support import study
from tests.support.proxy import meddling_proxy
from tests.support.s3_server import S3Server

LONG = ("schedule.steps=100000", "checkpoints.every_steps=20")


def test_logs_followed_to_the_end_miss_nothing(root: Store, tmp_path: Path) -> None:
    run = study.start(root, study.cluster())
    followed = igpt("logs", run.id, "--follow", folder=tmp_path, store=root.uri)
    assert followed.returncode == 0, followed.stderr
    read_later = igpt("logs", run.id, folder=tmp_path, store=root.uri)
    assert followed.stdout == read_later.stdout
    assert "steps 40/40" in followed.stdout
    assert igpt("logs", run.id, "--rank", "7", folder=tmp_path, store=root.uri).returncode == 4
    assert igpt("logs", run.id, "--attempt", "7", folder=tmp_path, store=root.uri).returncode == 4


def test_a_run_deleted_right_after_its_end_stays_deleted(root: Store, tmp_path: Path) -> None:
    run = study.start(root, study.cluster())
    study.until(run.result, "it finishes")
    ended = igpt("delete", run.id, "--yes", folder=tmp_path, store=root.uri)
    assert ended.returncode == 0, ended.stderr
    study.until(lambda: not study.processes(run), "its supervisor ends")
    assert not [info.key for info in root.objects() if run.id in info.key]


def test_a_run_at_work_is_not_deleted(root: Store, tmp_path: Path) -> None:
    run = study.start(root, study.cluster(), *LONG)
    refused = igpt("delete", run.id, "--yes", folder=tmp_path, store=root.uri)
    assert refused.returncode == 2
    assert "cancel" in refused.stderr
    assert run.record.exists("spec.yaml")


def test_deleting_asks_and_takes_no_silence_for_an_answer(root: Store, tmp_path: Path) -> None:
    run = study.start(root, study.cluster())
    study.ended(run)
    refused = igpt("delete", run.id, folder=tmp_path, store=root.uri)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert run.record.exists("result.json")


def test_exit_codes_of_waiting_are_those_of_the_outcome(root: Store, tmp_path: Path) -> None:
    run = study.start(root, study.cluster(), *LONG)
    study.until(lambda: status(run).state is RunState.RUNNING, "it runs")
    cancelled = igpt("cancel", run.id, "--wait", "--json", folder=tmp_path, store=root.uri)
    assert json.loads(cancelled.stdout)["state"] == "cancelled"
    waited = igpt("status", run.id, "--wait", folder=tmp_path, store=root.uri)
    assert waited.returncode == 5
    resumed = igpt("resume", run.id, "--json", folder=tmp_path, store=root.uri)
    assert json.loads(resumed.stdout)["step"] > 0
    study.until(lambda: status(run).state is RunState.RUNNING, "it runs again")
    study.kill(run)
    assert igpt("status", run.id, "--wait", folder=tmp_path, store=root.uri).returncode == 6
    assert igpt("status", run.id, folder=tmp_path, store=root.uri).returncode == 0


def test_control_c_leaves_a_followed_run_alive(root: Store, tmp_path: Path) -> None:
    run = study.start(root, study.cluster(), *LONG)
    follower = subprocess.Popen(
        [sys.executable, "-m", "igpt.cli", "status", run.id, "--wait", "--store", root.uri],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stderr is not None
        follower.stderr.readline()
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 130
        assert "goes on without you" in follower.stderr.read()
    finally:
        follower.kill()
        follower.communicate()
    assert status(run).state.active


def test_waiting_goes_on_when_the_store_was_away_meanwhile(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    """For longer than a single request is tried: the run itself waits for an hour."""
    run = recorded(open_store(f"{s3_bucket}/study"))
    run.event(ev.LAUNCHED, writer="client", attempt=1)
    away = threading.Event()
    answers: list[int] = []

    def meddle(_: bytes, part: bytes) -> bytes:
        answers.append(len(part))
        return b"" if away.is_set() else part

    def wait(endpoint: str, verb: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "igpt.cli", verb, run.id, "--wait", "--store", run.root.uri],
            cwd=tmp_path,
            env=os.environ | {"AWS_ENDPOINT_URL": endpoint},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with meddling_proxy(s3_server.endpoint, meddle) as endpoint, ExitStack() as stack:
        looking, cancelling = wait(endpoint, "status"), wait(endpoint, "cancel")
        stack.callback(looking.kill)
        stack.callback(cancelling.kill)
        study.until(lambda: run.last_event(ev.CANCEL_REQUESTED), "it is asked to stop")
        before = len(answers)
        study.until(lambda: len(answers) > before + 60, "both look on")
        away.set()
        assert looking.stderr
        assert "queued" in looking.stderr.readline()
        for waiting in (looking, cancelling):
            assert waiting.stderr
            assert "no answer from the store" in waiting.stderr.readline()
        away.clear()
        run.event(ev.CANCELLED, writer="supervisor", attempt=1)
        shown, told = looking.communicate(timeout=60)
        assert told == "the store answers again\n"
        assert (looking.returncode, "cancelled: by the user" in shown) == (5, True)
        _, told = cancelling.communicate(timeout=60)
        assert (cancelling.returncode, f"{run.id} cancelled" in told) == (0, True)


@pytest.mark.parametrize("verb", [("status", "--wait"), ("watch",)], ids=lambda verb: verb[0])
def test_a_silent_run_that_its_cluster_still_has_is_waited_for(
    verb: tuple[str, ...], store: Store, tmp_path: Path
) -> None:
    run = recorded(store)
    begun = time.time() - 500
    me = {"pid": os.getpid(), "started": process_started(os.getpid()), "host": platform.node()}
    for kind, fields in ((ev.SUBMITTED, {}), (ev.LAUNCHED, me)):
        write_event(run.record, kind, writer="client", time=begun, attempt=1, **fields)
    run.record.put(cluster_key(1), dump_yaml(study.cluster()).encode())
    silent = {"time": begun, "phase": "running", "host": platform.node(), "progress": {}}
    run.record.put("attempts/0001/heartbeat.json", json.dumps(silent).encode())
    waiting = subprocess.Popen(
        [sys.executable, "-m", "igpt.cli", *verb, run.id, "--store", store.uri],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert waiting.stdout
        assert any("no sign of life for" in line for line in waiting.stdout)
        run.beat(1, "running", {})
        assert any("running" in line for line in waiting.stdout)
        run.event(ev.CANCELLED, writer="supervisor", attempt=1)
        assert waiting.wait(60) == 5
    finally:
        waiting.kill()
        waiting.communicate()


def test_a_terminal_that_wants_no_colour_gets_plain_lines(root: Store, tmp_path: Path) -> None:
    run = study.start(root, study.cluster())
    study.ended(run)

    def shown(**environment: str) -> str:
        return on_a_terminal(tmp_path, "list", "--store", root.uri, **environment)[1]

    assert run.id in shown(NO_COLOR="1")
    assert "\x1b" not in shown(NO_COLOR="1")
    assert "\x1b" not in shown(TERM="dumb")
    assert "\x1b" in shown(TERM="xterm-256color")


def on_a_terminal(
    folder: Path, *arguments: str, typed: str = "", **environment: str
) -> tuple[int, str]:
    """The exit code of `igpt-jobs` on a terminal, and all that it shows there."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "igpt.cli", *arguments],
        cwd=folder,
        stdout=slave,
        stderr=slave,
        stdin=slave,
        env=os.environ | environment,
    )
    os.close(slave)
    os.write(master, typed.encode())
    text = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        text += part
    process.wait()
    os.close(master)
    return process.returncode, text.decode()


def test_on_a_terminal_a_submission_shows_its_cost_and_asks_unless_told_not_to(
    root: Store, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(f"job: pretrain\n{study.TRAINING}")
    command = ("submit", "tiny.yaml", "--store", root.uri)
    code, shown = on_a_terminal(tmp_path, *command, typed="n\n")
    assert code == 0
    for fact in ("memory", "checkpoints", "speed", "cluster", "Submit? [Y/n]", "not submitted"):
        assert fact in shown
    assert root.children("runs") == []

    code, shown = on_a_terminal(tmp_path, *command, typed="y\n")
    assert code == 0
    assert "submitted tiny-" in shown
    (run,) = root.children("runs")
    study.ended(find_run(root, run))

    code, shown = on_a_terminal(tmp_path, *command, "--new", "--yes")
    assert "Submit?" not in shown
    assert len(root.children("runs")) == 2


def test_a_damaged_record_is_named_and_can_still_be_deleted(root: Store, tmp_path: Path) -> None:
    run = study.start(root, study.cluster())
    study.ended(run)
    run.record.put("attempts/0001/heartbeat.json", b"{")
    shown = igpt("status", run.id, folder=tmp_path, store=root.uri)
    assert shown.returncode == 1
    assert "heartbeat.json is damaged" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert igpt("delete", run.id, "--yes", folder=tmp_path, store=root.uri).returncode == 0


def test_odd_places_are_refused_without_a_traceback(root: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (
        ["list", "--store", str(tmp_path / "file")],
        ["list", "--store", ""],
        ["list", "--store", "x" * 300],
        ["init", "file"],
        ["init", "x" * 300],
        ["quickstart", "--folder", "file", "--store", root.uri],
        ["submit", "x" * 300, "--store", root.uri],
        ["submit", "probe", "--store", root.uri],
    ):
        ended = igpt(*arguments, folder=tmp_path)
        assert ended.returncode == 2, (arguments, ended.stderr)
        assert "Traceback" not in ended.stderr
        assert ended.stderr.count("\n") == 1
    assert "igpt-jobs sweep probe" in igpt("submit", "probe", folder=tmp_path).stderr


def recorded(store: Store) -> Run:
    """The record of a run that has been begun, and nothing more."""
    return create_run(
        store, job="pretrain", name="tiny", config={}, inputs={}, status=lambda run: run.status()
    )[0]


def test_ctrl_d_at_a_question_is_a_no(root: Store, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(f"job: pretrain\n{study.TRAINING}")
    code, shown = on_a_terminal(tmp_path, "submit", "tiny.yaml", "--store", root.uri, typed="\x04")
    assert code == 130
    assert "not submitted" in shown
    assert "Aborted" not in shown
    assert root.children("runs") == []

    run = recorded(root)
    run.event(ev.FAILED, writer="client", attempt=1, final=True)
    code, shown = on_a_terminal(tmp_path, "delete", run.id, "--store", root.uri, typed="\x04")
    assert code == 130
    assert "nothing deleted" in shown
    assert run.record.exists("spec.yaml")


def test_a_run_that_has_only_been_recorded_is_not_said_to_be_at_work(
    store: Store, tmp_path: Path
) -> None:
    run = recorded(store)
    refused = igpt("delete", run.id, "--yes", folder=tmp_path, store=store.uri)
    assert refused.returncode == 2
    assert f"run {run.id} is submitted, recorded, not launched yet" in refused.stderr


def test_a_follower_is_told_once_how_a_run_ended(root: Store, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(f"job: pretrain\n{study.TRAINING}")
    ended = igpt("submit", "tiny.yaml", "--follow", folder=tmp_path, store=root.uri)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("finished") == 1
    assert "2 layers x 32" in ended.stderr
    assert "local: 1 worker x " in ended.stderr
    assert "at most 1 run at once" in ended.stderr
