"""Standard streams that are closed, full or read by nobody: what is asked for, and exit codes."""

import os
import subprocess
import sys
from pathlib import Path

from igpt.storage import Store
from tests.support import study

COMMAND = f"{sys.executable} -m igpt.cli"


def shell(folder: Path, text: str) -> "subprocess.CompletedProcess[str]":
    """What a shell makes of `text`, in which `igpt-jobs` is the command."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", text.replace("igpt-jobs ", f"{COMMAND} ")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_closed_output_is_one_that_nobody_wants(store: Store, tmp_path: Path) -> None:
    for closed in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        ended = shell(tmp_path, f"igpt-jobs list --json --store {store.uri} {closed}")
        assert (ended.returncode, ended.stderr) == (0, ""), closed
        assert ended.stdout == ("" if ">&- " in closed or closed == ">&-" else "[]\n")


def test_an_output_that_is_full_is_named(store: Store, tmp_path: Path) -> None:
    ended = shell(tmp_path, f"igpt-jobs list --json --store {store.uri} >/dev/full")
    assert ended.returncode == 2
    assert ended.stderr.startswith("igpt-jobs: standard output cannot be written: No space left")
    assert ended.stderr.count("\n") == 1


def test_an_error_that_nobody_reads_keeps_its_exit_code(store: Store, tmp_path: Path) -> None:
    status = f"igpt-jobs status nope --store {store.uri}"
    for unread in ("2>&-", "2>/dev/full", "2> >(exec true)"):
        assert shell(tmp_path, f"sleep 0.1; {status} {unread}").returncode == 4, unread
    assert shell(tmp_path, f"{status} 2>&1 | true").returncode == 4


def test_a_run_is_followed_to_its_end_though_nobody_reads(root: Store, tmp_path: Path) -> None:
    run = study.start(root, study.cluster())
    reading, writing = os.pipe()
    os.close(reading)
    waited = subprocess.run(
        [sys.executable, "-m", "igpt.cli", "status", run.id, "--wait", "--store", root.uri],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert waited.returncode == 0
    assert waited.stdout.startswith(f"{run.id}  finished")


def test_a_removed_working_directory_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    program = Path(sys.executable).with_name("igpt-jobs")
    ended = shell(tmp_path, f'cd gone && rmdir "$PWD" && "{program}" list --store {store.uri}')
    assert ended.returncode == 2, ended.stderr
    assert "the working directory cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr
