"""What a worker tells its parent, the log and the record, and what of it a lost store loses."""

import json
import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igpt.errors import Unreachable
from igpt.jobs import context
from igpt.jobs.context import RunSink, progress_file
from igpt.runs.attempts import read_metrics
from igpt.runs.events import read_events
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


class Away:
    """A store that cannot be written while `away`."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.away = True
        self.puts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put(self, key: str, data: bytes) -> None:
        self.puts += 1
        if self.away:
            raise Unreachable("the store cannot be reached")
        self.inner.put(key, data)


@pytest.fixture
def away(store: Store) -> Away:
    return Away(store)


def reporting(away: Away, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> RunSink:
    """Rank 0's sink, which tries to write after so many seconds."""
    monkeypatch.setattr(context, "FLUSH_SECONDS", seconds)
    run = replace(open_run(away.inner, "tiny-1a2b3c4d"), record=away)  # type: ignore[arg-type]
    return RunSink(run, 1, None, 0)


def lines(*steps: int) -> list[dict[str, object]]:
    return [{"step": step, "loss": 1.0} for step in steps]


def test_lines_and_events_are_kept_while_the_store_is_away(
    away: Away, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = reporting(away, monkeypatch)
    told.metrics(lines(1, 2))
    told.event("validated", step=2)
    told.metrics(lines(3))
    assert "are kept until the store is there: the store cannot be reached" in caplog.text
    with pytest.raises(Unreachable):
        told.flush()  # before a checkpoint it must succeed
    before = time.time()
    away.away = False
    told.flush()
    told.metrics(lines(4))
    told.flush()
    assert [line["step"] for line in read_metrics(store)] == [1, 2, 3, 4]
    (event,) = read_events(store)
    assert (event.kind, event.attempt, event.fields["step"]) == ("validated", 1, 2)
    assert event.time <= before  # when it happened, not when it could be said


def test_a_store_that_is_away_is_not_asked_with_every_step(
    away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = reporting(away, monkeypatch, seconds=0.05)
    time.sleep(0.06)
    for step in range(1, 50):
        told.metrics(lines(step))
        told.event("validated", step=step)
    assert away.puts <= 2


def test_what_is_kept_is_bounded(away: Away, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "MOST_LINES", 10)
    told = reporting(away, monkeypatch)
    told.metrics(lines(*range(10)))
    with pytest.raises(Unreachable):
        told.metrics(lines(10))


def test_no_step_waits_for_a_flush_of_the_checkpoint_writer(
    away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = reporting(away, monkeypatch)
    entered, leave = threading.Event(), threading.Event()

    def slow(key: str, data: bytes) -> None:
        entered.set()
        assert leave.wait(30)

    monkeypatch.setattr(away, "put", slow)
    with told._lock:
        told._pending += lines(1)
    writer = threading.Thread(target=told.flush)
    writer.start()
    assert entered.wait(30)
    told.metrics(lines(2))  # returns, although the store takes its time
    told.event("validated", step=2)
    leave.set()
    writer.join()
    assert [line["step"] for line in told._pending] == [2]


def test_a_sign_of_life_touches_the_progress_and_makes_none_up(
    store: Store, tmp_path: Path
) -> None:
    told, path = sink(store, tmp_path, 0), progress_file(tmp_path, 0)
    told.alive()
    assert not path.exists()
    told.progress(done=5, total=9, unit="steps")
    os.utime(path, (1.0, 1.0))
    told.alive()
    assert path.stat().st_mtime > 1.0
    assert json.loads(path.read_text())["done"] == 5
