"""`igpt-jobs doctor` on this machine: what it prints, and how it ends."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import igpt
from tests.support.schemas import validated


def test_this_machine_passes_and_nothing_is_left_in_the_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    ended = igpt("doctor", "--json", folder=tmp_path, store=str(store))
    document = validated("doctor", ended.stdout)
    assert (ended.returncode, document["failed"]) == (0, 0), document
    assert {one["level"] for one in document["findings"]} <= {"ok", "warn"}
    assert {one["check"]: one["level"] for one in document["findings"]}["all-reduce"] == "ok"
    assert not list(store.rglob("*"))
    assert "examining this machine" in ended.stderr


def test_a_store_that_cannot_be_reached_is_a_failure_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("IGPT_S3_ENDPOINT", "http://127.0.0.1:9")
    ended = igpt("doctor", folder=tmp_path, store="s3://bucket")
    assert ended.returncode == 3
    lines = ended.stdout.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("FAIL")]
    assert "store" in lines[place]
    assert "cannot be reached" in lines[place]
    assert "to do: Check that the server runs" in lines[place + 1]
    assert "\x1b" not in ended.stdout


def test_a_cluster_file_that_is_wrong_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("kind: local\nworker: 2\n")
    ended = igpt("doctor", "--cluster", "cluster.yaml", folder=tmp_path, store=str(tmp_path))
    assert ended.returncode == 2
    assert 'did you mean "workers"' in ended.stderr
    assert ended.stdout == ""


def test_on_a_terminal_it_is_a_table(tmp_path: Path) -> None:
    near, far = pty.openpty()
    command = [sys.executable, "-m", "igpt.cli", "doctor", "--store", str(tmp_path / "store")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=far, stderr=subprocess.DEVNULL
    )
    os.close(far)
    said = b""
    try:
        while chunk := _read(near):
            said += chunk
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(near)
    plain = re.sub("\x1b\\[[0-9;]*m", "", said.decode())
    assert plain != said.decode()
    assert "all-reduce" in plain
    assert max(map(len, plain.splitlines())) <= 80


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # the other end is closed
        return b""
