"""Checkpoints while the store is away: kept, tried again, and given up when there is no time."""

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from igpt.errors import Unreachable
from igpt.storage import Store, open_store
from igpt.training import saving
from igpt.training.checkpoint import list_committed
from igpt.training.writer import CheckpointWriter
from tests.training.test_checkpoint import checkpoint_of, landed, refs, trained
from tests.training.workers import Job, MemorySink, configuration, merged, run_here


@dataclass
class Weather:
    """Whether the store can be reached, and what it was asked."""

    away: bool = True
    uploads: list[str] = field(default_factory=list)
    cause: OSError | None = None
    deletes: bool = True  # whether it lets objects be deleted


class Flaky:
    """A real store that now and then cannot be reached."""

    def __init__(self, inner: Store, weather: Weather) -> None:
        self.inner = inner
        self.weather = weather

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def sub(self, prefix: str) -> "Flaky":
        return Flaky(self.inner.sub(prefix), self.weather)

    def upload(self, key: str, path: Path) -> None:
        self.weather.uploads.append(f"{self.inner.uri}/{key}")
        if self.weather.away:
            raise Unreachable("the store cannot be reached") from self.weather.cause
        self.inner.upload(key, path)

    def delete(self, keys: list[str]) -> None:
        if not self.weather.deletes:
            raise Unreachable("the store refuses to delete")
        self.inner.delete(keys)


@pytest.fixture
def weather() -> Weather:
    return Weather()


def writer_on(store: Store, weather: Weather, **more: Any) -> CheckpointWriter:
    given: dict[str, Any] = {
        "attempt": 1,
        "keep": 5,
        "milestones": {2},
        "superseded": lambda: False,
        "counting": lambda: list_committed(store),
    }
    return CheckpointWriter(Flaky(store, weather), **(given | more))  # type: ignore[arg-type]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_waits_gives_way_to_a_newer_one_but_for_milestones(
    store: Store, weather: Weather
) -> None:
    with writer_on(store, weather) as writer:
        for step in (1, 2, 3, 4):
            writer.start(checkpoint_of(trained(0), step))  # it waits for none of them
        assert writer.busy
        assert not writer.take()
        weather.away = False
        done = landed(writer)
    assert [written.ref.step for written in done] == [2, 4]
    assert list_committed(store) == refs((2, 1), (4, 1))


def test_the_fence_goes_before_a_second_try(store: Store, weather: Weather) -> None:
    overtaken = False
    with writer_on(store, weather, superseded=lambda: overtaken) as writer:
        writer.start(checkpoint_of(trained(0), 1))
        until(lambda: writer.tries > 0)
        overtaken, weather.away = True, False
        tried = len(weather.uploads)
        (written,) = landed(writer)
    assert not written.committed
    assert len(weather.uploads) == tried
    assert not list_committed(store)


def test_what_an_interrupted_try_has_sealed_is_taken_back_for_a_newer_attempt(
    store: Store, weather: Weather
) -> None:
    answers = iter([False, Unreachable("away"), True])

    def superseded() -> bool:
        answer = next(answers)
        if isinstance(answer, Unreachable):
            raise answer
        return bool(answer)

    weather.away = False
    with writer_on(store, weather, superseded=superseded, counting=list) as writer:
        writer.start(checkpoint_of(trained(0), 1))
        (written,) = landed(writer)
    assert not written.committed
    assert not list_committed(store)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"time_left": lambda: 3.0}, None),  # asked to stop, and soon to be killed
        ({"patience": -1.0}, None),
        ({}, OSError(errno.ENOSPC, "No space left on device")),  # that does not pass by itself
    ],
)
def test_nobody_waits_longer_than_there_is_time(
    store: Store, weather: Weather, changes: dict[str, Any], cause: OSError | None
) -> None:
    weather.cause = cause
    with writer_on(store, weather, **changes) as writer:
        writer.start(checkpoint_of(trained(0), 1))
        with pytest.raises(Unreachable):
            landed(writer)
    assert len(weather.uploads) == 1


def test_another_error_does_not_wait_for_the_store(store: Store, weather: Weather) -> None:
    def fail() -> None:
        with writer:
            writer.start(checkpoint_of(trained(0), 1))
            until(lambda: writer.tries > 0)
            raise KeyError("x")

    writer = writer_on(store, weather)
    with pytest.raises(KeyError):
        fail()
    assert not writer.busy


def test_older_checkpoints_that_cannot_be_dropped_are_dropped_with_the_next(
    store: Store, weather: Weather, caplog: pytest.LogCaptureFixture
) -> None:
    weather.away, weather.deletes = False, False
    with writer_on(store, weather, keep=1, milestones=()) as writer:
        for step in (1, 2):
            writer.start(checkpoint_of(trained(0), step))
        assert len(landed(writer)) == 2
        assert list_committed(store) == refs((1, 1), (2, 1))
        weather.deletes = True
        writer.start(checkpoint_of(trained(0), 3))
        landed(writer)
    assert list_committed(store) == refs((3, 1))
    assert "older checkpoints are not dropped now: the store refuses" in caplog.text


def test_training_goes_on_and_ends_although_the_store_was_away(
    dataset: str, tmp_path: Path, weather: Weather, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_MEETING_SECONDS", 0.05)
    job = Job(data=dataset, store=str(tmp_path / "checkpoints"), config=configuration(30))
    store = open_store(job.store)
    said = []

    class Watching(MemorySink):
        def progress(self, **fields: object) -> None:
            said.append(fields["done"])
            # After training and validation of the last step it is a sign of life: no step is made,
            # and yet nothing hangs.
            weather.away = said.count(30) < 3

    sink = Watching()
    outcome = run_here(job, sink, checkpoints=Flaky(store, weather))
    assert (outcome.status, outcome.step) == ("finished", 30)
    assert list_committed(store) == refs((30, 1))
    assert list(merged(sink.lines)) == list(range(1, 31))


def test_a_store_that_stays_away_ends_a_run_that_is_asked_to_stop(
    dataset: str, tmp_path: Path, weather: Weather
) -> None:
    job = Job(dataset, str(tmp_path / "checkpoints"), configuration(30), stop_at=2)
    away = Flaky(open_store(job.store), weather)
    with pytest.raises(Unreachable):
        run_here(job, MemorySink(), checkpoints=away, time_left=lambda: 3.0)
