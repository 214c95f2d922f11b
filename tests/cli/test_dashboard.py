"""`igpt-jobs dashboard`: what it prints of runs on Ray, and what of those without."""

import socket
from pathlib import Path

import pytest

from igpt.cli import dashboard as verb
from igpt.clusters.dashboard import Dashboard, write_dashboard
from igpt.clusters.files import cluster_key
from igpt.config import dump_yaml
from igpt.errors import Unreachable
from igpt.runs import Run, create_run
from igpt.runs import events as ev
from igpt.storage import Store
from tests.cli.command import igpt
from tests.support import study
from tests.support.schemas import validated

STANDING = Dashboard("head", "192.0.2.7", path="#/jobs/tiny-a1", time=1_000.0)
IN_A_JOB = Dashboard("node-7", "192.0.2.9", through="ssh", login="login.example.org")


def recorded(store: Store, dashboard: Dashboard | None) -> Run:
    """The record of a run that is at work on another machine."""
    run, _ = create_run(
        store, job="pretrain", name="tiny", config={}, inputs={}, status=lambda run: run.status()
    )
    run.event(ev.SUBMITTED, writer="client", attempt=1)
    run.record.put(cluster_key(1), dump_yaml(study.cluster()).encode())
    run.event(ev.LAUNCHED, writer="supervisor", attempt=1, host="elsewhere", pid=1, started="1")
    run.beat(1, "running", {})
    if dashboard is not None:
        write_dashboard(run, 1, dashboard)
    return run


def test_a_run_on_a_ray_cluster_has_an_address(store: Store, tmp_path: Path) -> None:
    run = recorded(store, STANDING)
    shown = igpt("dashboard", run.id, folder=tmp_path, store=store.uri)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == "http://192.0.2.7:8265/#/jobs/tiny-a1\n"
    as_json = igpt("dashboard", run.id, "--json", folder=tmp_path, store=store.uri)
    assert validated("dashboard", as_json.stdout) == {
        "run": run.id,
        "state": "running",
        "address": "http://192.0.2.7:8265/#/jobs/tiny-a1",
        "command": None,
        "host": "head",
        "port": 8265,
        "path": "#/jobs/tiny-a1",
        "through": "direct",
        "login": None,
        "time": 1_000.0,
        "stale": False,
    }


def test_ray_inside_a_job_is_reached_by_the_line_that_is_printed(
    store: Store, tmp_path: Path
) -> None:
    run = recorded(store, IN_A_JOB)
    shown = igpt("dashboard", run.id, folder=tmp_path, store=store.uri)
    assert shown.returncode == 0
    assert shown.stdout.splitlines() == [
        "ssh -N -L 8265:node-7:8265 login.example.org",
        "http://127.0.0.1:8265/",
    ]
    assert "leave this running" in shown.stderr


def test_the_user_is_told_what_to_put_for_a_login_that_nobody_knows(
    store: Store, tmp_path: Path
) -> None:
    run = recorded(store, Dashboard("node-7", "192.0.2.9", through="ssh"))
    shown = igpt("dashboard", run.id, folder=tmp_path, store=store.uri)
    assert shown.stdout.splitlines()[0].endswith(" LOGIN")
    assert "for LOGIN" in shown.stderr


def test_a_run_without_ray_has_none_and_is_told_what_shows_it(store: Store, tmp_path: Path) -> None:
    run = recorded(store, None)
    shown = igpt("dashboard", run.id, folder=tmp_path, store=store.uri)
    assert (shown.returncode, shown.stdout) == (4, "")
    for word in ("cluster local", f"igpt-jobs watch {run.id}", "figures.tensorboard"):
        assert word in shown.stderr


def test_what_ended_with_the_run_is_not_offered_any_more(store: Store, tmp_path: Path) -> None:
    run = recorded(store, IN_A_JOB)
    run.event(ev.FAILED, writer="supervisor", attempt=1, final=True, **{"class": "crash"})
    shown = igpt("dashboard", run.id, folder=tmp_path, store=store.uri)
    assert (shown.returncode, shown.stdout) == (4, "")
    assert "has ended with it" in shown.stderr


def test_a_cluster_that_outlives_the_run_is_offered_as_stale(store: Store, tmp_path: Path) -> None:
    run = recorded(store, STANDING)
    run.event(ev.CANCELLED, writer="supervisor", attempt=1)
    shown = igpt("dashboard", run.id, folder=tmp_path, store=store.uri)
    assert (shown.returncode, shown.stdout.splitlines()[0][:4]) == (0, "http")
    assert "is cancelled" in shown.stderr
    as_json = igpt("dashboard", run.id, "--json", folder=tmp_path, store=store.uri)
    assert validated("dashboard", as_json.stdout)["stale"]


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A browser that only notes what it is to open, in this file."""
    noted = tmp_path / "opened"
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > {noted}\n')
    program.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{program} %s")
    return noted


def test_open_opens_the_address(store: Store, tmp_path: Path, browser: Path) -> None:
    run = recorded(store, STANDING)
    shown = igpt("dashboard", run.id, "--open", folder=tmp_path, store=store.uri)
    assert shown.returncode == 0, shown.stderr
    address = shown.stdout.strip()
    study.until(lambda: browser.exists() and browser.read_text() == address, "it is opened", 30)


def test_open_waits_for_the_tunnel(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded(store, IN_A_JOB)
    opened: list[str] = []
    monkeypatch.setattr(verb.webbrowser, "open", lambda address: opened.append(address) or True)
    with socket.socket() as tunnel:
        tunnel.bind(("127.0.0.1", 0))
        monkeypatch.setattr(verb, "PORT", tunnel.getsockname()[1])
        with pytest.raises(Unreachable, match="In another terminal: ssh -N -L 8265:node-7:8265"):
            verb.command(run.id, store=store.uri, open_it=True)
        assert opened == []
        tunnel.listen()
        verb.command(run.id, store=store.uri, open_it=True)
    assert opened == ["http://127.0.0.1:8265/"]
