"""The queue of a machine: first come, first served, and no slot is ever leaked."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from igpt.clusters.local.queue import Ticket, held, only_one

_HOLD = """
import sys
from pathlib import Path
from igpt.clusters.local.queue import Ticket
ticket = Ticket(Path(sys.argv[1]), "other")
print(ticket.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a ticket of the same queue."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_older_tickets_go_first(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    mine = Ticket(tmp_path, "mine")
    assert mine.ahead() == 1
    other.communicate()
    assert mine.ahead() == 0
    mine.release()
    assert list(tmp_path.glob("*.ticket")) == []


def test_a_killed_holder_leaks_no_slot(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    mine = Ticket(tmp_path, "mine")
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert mine.ahead() == 0
    assert len(list(tmp_path.glob("*.ticket"))) == 1


def test_a_stopped_holder_keeps_its_place(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    mine = Ticket(tmp_path, "mine")
    os.kill(other.pid, signal.SIGSTOP)
    assert mine.ahead() == 1
    os.kill(other.pid, signal.SIGCONT)


def test_a_younger_ticket_does_not_count(tmp_path: Path) -> None:
    first = Ticket(tmp_path, "a")
    second = Ticket(tmp_path, "b")
    assert first.ahead() == 0
    assert held(second.path)


def test_an_older_attempt_of_the_same_run_is_not_waited_for(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    assert Ticket(tmp_path, "other").ahead() == 0


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "run.lock"
    with only_one(lock) as first:
        assert first
        with only_one(lock) as second:
            assert not second
    with only_one(lock) as third:
        assert third
