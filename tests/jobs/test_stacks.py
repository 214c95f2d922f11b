"""The stacks of ranks that no longer move, asked of real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from igpt.jobs import stacks
from tests.support import study

_READY = "from igpt.jobs import stacks; stacks.install()\n"

IN_A_LOOP = (
    _READY
    + """
def spin():
    while True:
        pass
spin()
"""
)

IN_A_READ = (
    _READY
    + """
import os, threading, time
def idle():
    time.sleep(600)
def wait_for_word():
    return os.read(0, 1)
for _ in range(3):
    threading.Thread(target=idle, daemon=True).start()
os.write(1, b"up\\n")
assert wait_for_word() == b"x"
os.write(1, b"went on")
"""
)

# PyDLL, unlike CDLL, keeps the interpreter's lock while it is in C.
WITH_THE_LOCK = (
    _READY
    + """
import ctypes
def hold():
    return ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)
assert hold() == 1
"""
)

IN_A_GATHER = (
    _READY
    + """
import sys, time
from datetime import timedelta
from pathlib import Path
import torch
from igpt.training.parallel import gather, process_group
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
cpu = torch.device("cpu")
with process_group(
    rank, 2, cpu, rendezvous=f"file://{folder}/meet", timeout=timedelta(seconds=120)
):
    while rank == 1 and not (folder / "come").exists():
        time.sleep(0.05)
    assert gather([float(rank)], cpu).tolist() == [[0.0], [1.0]]
"""
)


class Process:
    """A Python process whose output goes to a file."""

    def __init__(self, code: str, output: Path, *arguments: str) -> None:
        self._output = output
        with output.open("wb") as stream:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            )
        self.pid = self.popen.pid

    def said(self) -> str:
        return self._output.read_text()

    def stands(self, function: str) -> str:
        """Asks again and again until the main thread stands in `function`; returns the summary."""

        def there() -> str | None:
            assert self.popen.poll() is None, self.said()
            if stacks.ask([self.pid]):
                return None
            said = self.said()
            if not said.endswith("in <module>\n"):
                return None  # the dump is still being written
            found = stacks.summary(said)
            return found if found and f"in {function} at" in found else None

        return str(study.until(there, f"the process stands in {function}", 60))

    def is_in(self, state: str) -> bool:
        return f"State:\t{state}" in Path(f"/proc/{self.pid}/status").read_text()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def begin(code: str, *arguments: str) -> Process:
        started.append(Process(code, tmp_path / f"output-{len(started)}", *arguments))
        return started[-1]

    yield begin
    for process in started:
        process.popen.kill()
        process.popen.communicate()


def test_a_rank_in_a_python_loop_says_where_and_runs_on(start: Start) -> None:
    process = start(IN_A_LOOP)
    assert process.stands("spin").startswith("in spin at <string>:")
    before = process.said().count("Current thread")
    assert stacks.ask([process.pid]) == {}
    study.until(lambda: process.said().count("Current thread") > before, "it answers again")
    assert process.popen.poll() is None


def test_a_rank_in_a_blocking_read_says_where_and_gets_its_data_afterwards(start: Start) -> None:
    process = start(IN_A_READ)
    process.stands("wait_for_word")
    assert process.said().count("in idle") >= 3, "every thread is in the dump"
    process.popen.communicate(b"x", timeout=30)
    assert process.popen.returncode == 0
    assert process.said().endswith("went on")


def test_a_rank_that_keeps_the_interpreters_lock_in_c_says_where(start: Start) -> None:
    process = start(WITH_THE_LOCK)
    assert process.stands("hold").startswith("in hold at <string>:")
    process.popen.communicate(b"x", timeout=30)
    assert process.popen.returncode == 0


def test_a_gather_whose_peer_does_not_come_is_named_and_ends_well_when_it_comes(
    start: Start, tmp_path: Path
) -> None:
    ranks = [start(IN_A_GATHER, str(rank), str(tmp_path)) for rank in range(2)]
    found = ranks[0].stands("all_gather")
    assert found.startswith("in all_gather at torch/distributed/")
    assert ", called from _gather at igpt/training/parallel.py:" in found
    (tmp_path / "come").touch()
    assert [rank.popen.wait(timeout=60) for rank in ranks] == [0, 0], ranks[0].said()


def test_a_stopped_rank_cannot_answer_until_it_goes_on(start: Start) -> None:
    process = start(IN_A_READ)
    process.stands("wait_for_word")
    os.kill(process.pid, signal.SIGSTOP)
    study.until(lambda: process.is_in("T"), "it is stopped")
    before = process.said()
    assert stacks.ask([process.pid])[process.pid].startswith("is stopped")
    assert process.said() == before
    os.kill(process.pid, signal.SIGCONT)
    study.until(lambda: process.said() != before, "it answers")
    assert process.popen.poll() is None


def test_a_process_that_would_die_of_the_question_is_not_asked(start: Start) -> None:
    process = start("import os; os.write(1, b'up'); os.read(0, 1)")
    study.until(lambda: process.said() == "up", "it is up")
    assert stacks.ask([process.pid]) == {process.pid: "has not come far enough to answer"}
    process.popen.communicate(b"x", timeout=30)
    assert process.popen.returncode == 0


def test_one_that_has_ended_is_said_to_have(start: Start) -> None:
    process = start("")
    study.until(lambda: process.is_in("Z"), "it has ended")
    assert stacks.ask([process.pid]) == {process.pid: "has ended"}
    process.popen.wait()
    assert stacks.ask([process.pid]) == {process.pid: "has ended"}


def test_a_fatal_signal_leaves_the_stacks_behind(start: Start) -> None:
    process = start(_READY + "import ctypes\ndef fall():\n    ctypes.string_at(0)\nfall()")
    assert process.popen.wait(timeout=30) == -signal.SIGSEGV
    assert "in fall" in process.said()


@pytest.mark.parametrize(
    ("state", "caught", "expected"),
    [
        ("R (running)", "0000000000004004", None),
        ("S (sleeping)", "0000000000004004", None),
        ("D (disk sleep)", "0000000000004004", "waits inside the kernel"),
        ("t (tracing stop)", "0000000000004004", "is stopped"),
        ("S (sleeping)", "0000000000004002", "has not come far enough"),
    ],
)
def test_what_the_kernel_says_of_a_process_says_whether_it_can_answer(
    state: str, caught: str, expected: str | None
) -> None:
    status = f"Name:\tpython\nState:\t{state}\nSigIgn:\t0000000001001000\nSigCgt:\t{caught}\n"
    found = stacks.obstacle(status)
    assert found is None if expected is None else found and found.startswith(expected)


DUMP = """step 12 loss 2.3
Thread 0x00007fef720976c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007fef73bdeb80 (most recent call first):
  File "/home/igpt/venv/lib/python3.11/site-packages/torch/cuda/__init__.py", line 985 in synchronize
  File "/home/igpt/code/igpt/training/step.py", line 90 in run
  File "/home/igpt/code/igpt/training/loop.py", line 200 in train
"""  # noqa: E501 (as it was written)


def test_the_summary_names_the_innermost_frame_and_the_innermost_of_ours() -> None:
    assert stacks.summary(DUMP + "a later line\n") == (
        "in synchronize at torch/cuda/__init__.py:985, called from run at igpt/training/step.py:90"
    )


def test_the_summary_is_of_the_last_dump() -> None:
    later = 'Current thread 0x01 (most recent call first):\n  File "/x/igpt/a.py", line 3 in last\n'
    assert stacks.summary(f"{DUMP}{later}") == "in last at igpt/a.py:3"


def test_text_without_a_dump_has_no_summary() -> None:
    assert stacks.summary("step 12 loss 2.3\n") is None
    assert (
        stacks.summary("Current thread 0x01 (most recent call first):\n  <no Python frame>") is None
    )


def test_a_dump_of_so_many_threads_that_the_main_one_is_cut_off_has_no_summary(
    start: Start,
) -> None:
    process = start(IN_A_READ.replace("range(3)", "range(120)"))
    study.until(lambda: process.said() == "up\n", "its threads are there")
    assert stacks.ask([process.pid]) == {}
    study.until(lambda: process.said().endswith("\n...\n"), "the dump is cut off", 30)
    assert stacks.summary(process.said()) is None
