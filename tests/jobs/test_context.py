"""What a worker tells its parent process of its progress, and what the log gets of it."""

import json
import logging
import os
from pathlib import Path

import pytest

from igpt.jobs.context import RunSink, progress_file
from igpt.runs.record import open_run
from igpt.storage import Store


def sink(store: Store, scratch: Path, rank: int) -> RunSink:
    return RunSink(open_run(store, "tiny-1a2b3c4d"), 1, scratch, rank)


def test_every_rank_has_a_file_of_its_own_and_only_rank_0_logs(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="igpt")
    for rank in (0, 1):
        sink(store, tmp_path, rank).progress(done=5 + rank, total=9, unit="steps")
    assert json.loads(progress_file(tmp_path, 0).read_text())["done"] == 5
    assert json.loads(progress_file(tmp_path, 1).read_text())["done"] == 6
    assert caplog.messages == ["steps 5/9"]


def test_who_waits_shows_life_and_does_not_fill_the_log(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="igpt")
    monkeypatch.setattr("igpt.jobs.context.LOG_SECONDS", -1.0)
    told = sink(store, tmp_path, 0)
    told.progress(done=4, total=9, unit="images")
    os.utime(progress_file(tmp_path, 0), (0, 0))
    told.progress(done=4, total=9, unit="images")
    assert progress_file(tmp_path, 0).stat().st_mtime > 0
    told.progress(done=5, total=9, unit="images")
    assert caplog.messages == ["images 4/9", "images 5/9"]


def test_every_end_is_logged_and_none_twice(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="igpt")
    told = sink(store, tmp_path, 0)
    told.progress(done=9, total=9, unit="images")
    told.progress(done=9, total=9, unit="images")
    told.progress(done=1, total=2, unit="layers")
    told.progress(done=2, total=2, unit="layers")
    told.progress(done=2, total=2, unit="layers", loss=1.0)
    assert caplog.messages == ["images 9/9", "layers 2/2"]
