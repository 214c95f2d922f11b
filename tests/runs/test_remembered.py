"""A record seen through a memory: what it saves, and that it never shows what is no more so."""

from dataclasses import replace

import pytest

from igpt.errors import NotFound
from igpt.runs.attempts import Claim, claim
from igpt.runs.events import LAUNCHED, STARTED, SUBMITTED
from igpt.runs.record import open_run
from igpt.runs.remembered import RememberedRecord
from igpt.runs.state import RunState, Sight
from igpt.storage import Store
from tests.support.counting import CountingStore


def begin(store: Store) -> None:
    """A run that has begun its first attempt."""
    run = open_run(store, "a-1")
    run.record.put("spec.yaml", b"")
    for kind in (SUBMITTED, LAUNCHED, STARTED):
        run.event(kind, writer="test", attempt=1)
    claim(run.record, Claim(1, "word", "host", 2, 1.0))
    run.record.put("attempts/0001/heartbeat.json", beat(1.0))


def beat(time: float) -> bytes:
    return f'{{"time": {time}, "phase": "running", "host": "h", "progress": {{}}}}'.encode()


def test_a_second_look_asks_only_for_what_may_have_changed(store: Store) -> None:
    begin(store)
    counting = CountingStore(open_run(store, "a-1").record)
    record = RememberedRecord(counting)  # type: ignore[arg-type]
    run = replace(open_run(store, "a-1"), record=record)

    def look() -> int:
        counting.asked.clear()
        record.forget()
        assert run.status(sight=Sight(alive=True)).state is RunState.RUNNING
        assert [one.workers for one in run.claims()] == [2]
        return counting.asked.total()

    assert look() > 5
    assert look() == 4  # the events' names, the attempts' names, result.json, the heartbeat
    run.event(STARTED, writer="test", attempt=2)
    assert look() == 5  # and one new event


def test_a_look_shows_one_moment_and_the_next_look_the_next(store: Store) -> None:
    begin(store)
    record = RememberedRecord(open_run(store, "a-1").record)
    assert record.get("attempts/0001/heartbeat.json") == beat(1.0)
    assert not record.exists("result.json")
    store.put("runs/a-1/attempts/0001/heartbeat.json", beat(2.0))
    store.put("runs/a-1/result.json", b"{}")
    assert record.get("attempts/0001/heartbeat.json") == beat(1.0)
    assert not record.exists("result.json")
    record.forget()
    assert record.get("attempts/0001/heartbeat.json") == beat(2.0)
    assert record.exists("result.json")


def test_what_is_written_through_it_is_seen_at_once(store: Store) -> None:
    begin(store)
    record = RememberedRecord(open_run(store, "a-1").record)
    assert record.get("attempts/0001/heartbeat.json") == beat(1.0)
    record.put("attempts/0001/heartbeat.json", beat(3.0))
    assert record.get("attempts/0001/heartbeat.json") == beat(3.0)
    assert not record.exists("result.json")
    assert record.children("attempts") == ["0001"]
    assert record.create("result.json", b"{}")
    assert record.exists("result.json")
    assert record.create("attempts/0002/claim.json", b"{}")
    assert record.children("attempts") == ["0001", "0002"]
    record.delete(["attempts/0002/claim.json"])
    assert not record.exists("attempts/0002/claim.json")
    with pytest.raises(NotFound):
        record.get("attempts/0002/claim.json")


def test_a_run_that_was_deleted_is_gone_at_the_next_look(store: Store) -> None:
    begin(store)
    record = RememberedRecord(open_run(store, "a-1").record)
    run = replace(open_run(store, "a-1"), record=record)
    assert run.status().state is RunState.RUNNING
    open_run(store, "a-1").delete()
    record.forget()
    with pytest.raises(NotFound):
        run.status()
