"""Where Ray's dashboard is, and what has to run to reach it."""

import json
import shlex
import subprocess

import pytest

from igpt.clusters.dashboard import (
    Dashboard,
    dashboard_key,
    read_dashboard,
    tunnel,
    write_dashboard,
)
from igpt.errors import DataCorrupt
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.record import open_run
from igpt.storage import Store

STANDING = Dashboard("head", "192.0.2.7", 8265, path="#/jobs/tiny-1a2b3c4d-a1")
IN_A_JOB = Dashboard("node-7", "192.0.2.9", 8266, through="ssh", login="login.example.org")


@pytest.fixture
def run(store: Store) -> Run:
    return open_run(store, "tiny-1a2b3c4d")


def test_what_is_written_down_is_read_back(run: Run) -> None:
    assert read_dashboard(run) is None
    write_dashboard(run, 1, IN_A_JOB)
    assert read_dashboard(run) == IN_A_JOB
    body = json.loads(run.record.get("attempts/0001/dashboard.json"))
    assert set(body) >= {"host", "address", "port", "path", "through", "login", "time"}


def test_attempts_of_one_supervisor_share_its_dashboard_until_the_run_is_resumed(run: Run) -> None:
    run.event(ev.SUBMITTED, writer="client", attempt=1)
    write_dashboard(run, 1, STANDING)
    run.record.put("attempts/0002/cluster.yaml", b"")
    assert read_dashboard(run) == STANDING
    write_dashboard(run, 2, IN_A_JOB)
    assert read_dashboard(run) == IN_A_JOB
    run.event(ev.SUBMITTED, writer="client", attempt=3)
    run.record.put("attempts/0003/cluster.yaml", b"")
    assert read_dashboard(run) is None


@pytest.mark.parametrize(
    "change", [{"port": "8265"}, {"scheme": "javascript"}, {"through": "luck"}, {"host": None}]
)
def test_a_damaged_one_is_named(run: Run, change: dict[str, object]) -> None:
    write_dashboard(run, 1, STANDING)
    body = json.loads(run.record.get(dashboard_key(1))) | change
    run.record.put(dashboard_key(1), json.dumps(body).encode())
    with pytest.raises(DataCorrupt, match=r"attempts/0001/dashboard\.json is damaged"):
        read_dashboard(run)


def test_a_dashboard_that_can_be_reached_needs_no_tunnel() -> None:
    assert tunnel(STANDING) == ("http://192.0.2.7:8265/#/jobs/tiny-1a2b3c4d-a1", None)
    secure = Dashboard("ray", "ray.example.org", 443, scheme="https")
    assert tunnel(secure) == ("https://ray.example.org:443/", None)
    assert tunnel(Dashboard("six", "2001:db8::7"))[0] == "http://[2001:db8::7]:8265/"


def test_a_dashboard_on_a_node_is_reached_through_ssh() -> None:
    assert tunnel(IN_A_JOB) == (
        "http://127.0.0.1:8265/",
        "ssh -N -L 8265:node-7:8266 login.example.org",
    )
    unknown = Dashboard("node-7", "192.0.2.9", through="ssh", path="#/jobs/x")
    assert tunnel(unknown) == ("http://127.0.0.1:8265/#/jobs/x", "ssh -N -L 8265:node-7:8265 LOGIN")


def test_no_name_becomes_a_command_of_the_shell() -> None:
    odd = Dashboard("n; echo a", "192.0.2.9", through="ssh", login="$(echo b)")
    _, command = tunnel(odd)
    assert command is not None
    assert shlex.split(command) == ["ssh", "-N", "-L", "8265:n; echo a:8265", "$(echo b)"]
    # And the shell agrees.
    echoed = subprocess.run(
        ["/bin/sh", "-c", command.replace("ssh", "printf '%s\\n'", 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert echoed.stdout.splitlines() == ["-N", "-L", "8265:n; echo a:8265", "$(echo b)"]
