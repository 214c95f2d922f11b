"""Ray inside a job of Slurm, as far as it needs neither: commands, ports, words, and its guard."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from igpt.clusters.network import address_of, address_towards, interface_of
from igpt.clusters.slurm import ray_guard
from igpt.clusters.slurm.config import SlurmCluster
from igpt.clusters.slurm.ray_daemon import (
    Ports,
    RayNode,
    free_ports,
    is_free,
    keep_logs,
    last_words,
    short_folder,
    start_command,
)
from igpt.clusters.slurm.ray_nodes import RayFailed, gpus_of, not_started, own_address
from igpt.runs.failures import FailureClass
from tests.support import study

HEAD = RayNode("10.0.0.1", cpus=8, gpus=2, role=Ports(20_001, 20_002, 20_003))


def test_a_head_is_told_all_that_it_would_guess() -> None:
    command = start_command(HEAD, Path("/tmp/r/ray"))
    assert command[:4] == [sys.executable, "-m", "ray.scripts.scripts", "start"]
    assert {
        *("--head", "--block", "--node-ip-address=10.0.0.1", "--num-cpus=8", "--num-gpus=2"),
        *("--port=20001", "--ray-client-server-port=20002", "--dashboard-port=20003"),
        *("--dashboard-host=10.0.0.1", "--temp-dir=/tmp/r/ray", "--disable-usage-stats"),
    } <= set(command)


def test_another_node_joins_the_head_and_takes_no_port_that_a_second_job_would_take() -> None:
    command = start_command(RayNode("10.0.0.2", 8, 0, "10.0.0.1:20001"), Path("/tmp/r/ray"))
    assert "--address=10.0.0.1:20001" in command
    assert not [word for word in command if word.startswith(("--head", "--port", "--dashboard-p"))]
    free = {"--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"}
    assert free <= set(command)


def test_jobs_on_one_node_look_for_ports_in_different_places() -> None:
    first, second = (free_ports(job, 3, lambda port: True) for job in ("17.0", "18.0"))
    assert len({*first, *second}) == 6
    assert first == free_ports("17.0", 3, lambda port: True)
    taken = set(first)
    assert taken.isdisjoint(free_ports("17.0", 3, lambda port: port not in taken))
    with pytest.raises(OSError, match="no 3 free ports"):
        free_ports("17.0", 3, lambda port: False)


def test_a_port_at_which_somebody_listens_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        assert not is_free(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 0),
        ({"gpus_per_node": 8}, 8),
        ({"gpus_per_node": "a100:4"}, 4),
        ({"gpus_per_node": "a100"}, 1),
        ({"gpus_per_node": "a100:2,v100:1"}, 3),
        ({"gres": "gpu:2,disk:500"}, 2),
        ({"gres": "disk:500,gpu:a100:4(S:0-1)"}, 4),
        ({"gres": "gpu"}, 1),
        ({"gres": "disk:500"}, 0),
    ],
)
def test_the_gpus_of_a_node_are_those_that_it_asks_slurm_for(
    fields: dict[str, str], count: int
) -> None:
    assert gpus_of(SlurmCluster.model_validate(fields)) == count


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing"),
        ("starting\nno space left\n\n", "no space left"),
        (
            "Traceback (most recent call last):\n  raise RuntimeError(\n"
            "RuntimeError: no GCS. Errors:\n[C] the port is taken\n",
            "RuntimeError: no GCS. Errors: [C] the port is taken",
        ),
        ("ray.exceptions.SomeError: why\n", "ray.exceptions.SomeError: why"),
    ],
)
def test_the_last_words_are_the_last_exception_or_line(text: str, words: str) -> None:
    assert last_words(text) == words


@pytest.mark.parametrize(
    ("words", "late", "failure"),
    [
        ("Exception: The current node timed out during startup. This", False, FailureClass.NODE),
        ("waiting for the head", True, FailureClass.NODE),
        ("no room for Ray here", False, FailureClass.CRASH),
    ],
)
def test_a_node_on_which_ray_takes_too_long_is_a_slow_one(
    words: str, late: bool, failure: FailureClass
) -> None:
    failed = not_started("n2", words, late=late)
    assert failed.failure is failure
    assert str(failed).startswith("Ray did not start on n2")
    assert f": {words}" in str(failed)


def test_last_words_are_of_bounded_length() -> None:
    assert len(last_words("ValueError: " + "x" * 5000)) == 400


@pytest.mark.parametrize("usual", ["/tmp", "/scratch/1234567", "/local/" + "x" * 40])
def test_the_sockets_of_ray_have_paths_that_the_system_takes(usual: str) -> None:
    session = "session_2026-11-24_17-40-13_123456_1234567"
    path = f"{short_folder(usual)}/ray-12345678/ray/{session}/sockets/plasma_store"
    assert len(path) <= 107
    assert short_folder("/tmp") == "/tmp"


def test_the_end_of_each_log_is_kept_and_not_more_than_fits(tmp_path: Path) -> None:
    logs = tmp_path / "ray" / "session_1" / "logs"
    (logs / "old").mkdir(parents=True)
    (tmp_path / "ray" / "session_latest").symlink_to(logs.parent)
    (tmp_path / "output").write_text("Ray runtime started.\n")
    (logs / "empty.log").touch()
    (logs / "elsewhere.log").symlink_to("/etc/hostname")
    for number in range(80):
        (logs / f"worker-{number:02d}.out").write_text("x" * 300_000 + "the end")
    keep_logs(tmp_path, tmp_path / "kept")
    kept = {path.name: path.read_text() for path in (tmp_path / "kept").iterdir()}
    assert kept["output"] == "Ray runtime started.\n"
    assert kept["worker-00.out"].endswith("xthe end")
    assert {"empty.log", "elsewhere.log", "old"}.isdisjoint(kept)
    assert sum(map(len, kept.values())) <= 16 * 2**20
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0


def test_a_ray_that_never_began_leaves_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("no\n")
    keep_logs(tmp_path, tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["output"]


def test_the_address_of_a_node_is_that_of_the_network_that_the_file_names() -> None:
    assert own_address(SlurmCluster(), "127.0.0.1") == address_towards("127.0.0.1") == "127.0.0.1"
    loopback = interface_of("127.0.0.1")
    assert loopback is not None
    assert address_of(loopback) == "127.0.0.1"
    assert own_address(SlurmCluster(network_interface=loopback), "192.0.2.1") == "127.0.0.1"
    with pytest.raises(RayFailed, match="ib7 has no IPv4 address on"):
        own_address(SlurmCluster(network_interface="ib7"), "192.0.2.1")


#: Starts a child in a process group of its own, as Ray does with its workers; says who they are.
_FAMILY = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"], process_group=0)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def guarded() -> Iterator["subprocess.Popen[str]"]:
    """A guard over a small family, which prints its process ids."""
    process = subprocess.Popen(
        [sys.executable, "-I", ray_guard.__file__, sys.executable, "-c", _FAMILY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(30)


def family(guard: "subprocess.Popen[str]") -> list[int]:
    assert guard.stdout is not None
    return [int(word) for word in guard.stdout.readline().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_slurms_signals_end_nothing_of_ray(guarded: "subprocess.Popen[str]") -> None:
    members = [guarded.pid, *family(guarded)]
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    for pid in members:
        for number in numbers:
            os.kill(pid, number)
    for pid in members:  # they have come, and wait for ever
        assert pending(pid) >= set(numbers)
    assert all(map(alive, members))


def pending(pid: int) -> set[int]:
    """The signals that a process has been sent and is deaf to."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("ShdPnd:")[2].split()[0], 16)
    return {number for number in range(1, 32) if mask >> (number - 1) & 1}


def test_all_of_ray_ends_when_the_pipe_is_closed(guarded: "subprocess.Popen[str]") -> None:
    members = family(guarded)
    assert guarded.stdin is not None
    guarded.stdin.close()
    assert guarded.wait(30) != 0
    assert not any(map(alive, members))


def test_all_of_ray_ends_when_its_command_does(guarded: "subprocess.Popen[str]") -> None:
    command, child = family(guarded)
    os.kill(command, signal.SIGKILL)
    assert guarded.wait(30) != 0
    assert not alive(child)


def test_what_ray_start_runs_ends_when_the_guard_is_killed(
    guarded: "subprocess.Popen[str]",
) -> None:
    command, child = family(guarded)
    guarded.kill()
    try:
        study.until(lambda: not alive(command), "the command ends with its guard", 30)
    finally:
        os.kill(child, signal.SIGKILL)
