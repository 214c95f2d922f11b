"""The runs of a store from its listings alone."""

import json

from hypothesis import given
from hypothesis import strategies as st

from igpt.runs.events import timestamp
from igpt.runs.listing import Hint, finished_runs, list_hints
from igpt.runs.state import RunState
from igpt.storage import Store
from tests.support.counting import CountingStore


def hint(store: Store, run: str, time: float, state: RunState) -> None:
    store.put(f"index/{run}.{timestamp(time)}.{state}", b"")


def test_the_newest_hint_says_the_state_and_the_newest_run_comes_first(store: Store) -> None:
    hint(store, "old-1", 100.0, RunState.SUBMITTED)
    hint(store, "old-1", 300.5, RunState.FAILED)
    hint(store, "old-1", 200.0, RunState.RUNNING)
    hint(store, "new-2", 150.0, RunState.SUBMITTED)
    assert list_hints(store) == [
        Hint("new-2", RunState.SUBMITTED, 150.0, 150.0),
        Hint("old-1", RunState.FAILED, 100.0, 300.5),
    ]


def test_a_run_whose_client_died_before_its_first_hint_is_listed(store: Store) -> None:
    store.put("runs/orphan-1/spec.yaml", b"")
    (found,) = list_hints(store)
    assert (found.run, found.state) == ("orphan-1", RunState.SUBMITTED)
    assert found.submitted == store.objects("runs/orphan-1/")[0].modified


def test_what_is_no_hint_is_passed_over(store: Store) -> None:
    hint(store, "a-1", 100.0, RunState.RUNNING)
    for name in (
        "notes.txt",
        "a-1.20260101T000000.000000Z.sleeping",
        "a-1.yesterdayZ.running",
        "a-1.20260101T000000.000000.running",  # of which time zone?
    ):
        store.put(f"index/{name}", b"")
    assert list_hints(store) == [Hint("a-1", RunState.RUNNING, 100.0, 100.0)]


@given(st.floats(min_value=0, max_value=4e9))
def test_a_hint_keeps_its_time_to_the_microsecond(time: float) -> None:
    class OneHint:
        def children(self, prefix: str) -> list[str]:
            return [f"a-1.{timestamp(time)}.running"] if prefix == "index" else ["a-1"]

    (found,) = list_hints(OneHint())  # type: ignore[arg-type]
    assert abs(found.changed - time) < 2e-6


def test_listing_takes_two_listings_however_many_runs_there_are(store: Store) -> None:
    for number in range(20):
        hint(store, f"a-{number}", 100.0 + number, RunState.FINISHED)
        store.put(f"runs/a-{number}/spec.yaml", b"")
    counting = CountingStore(store)
    assert len(list_hints(counting)) == 20  # type: ignore[arg-type]
    assert counting.asked == {"children": 2}


def test_what_has_finished_is_found_by_its_record_where_the_hints_lag_behind(store: Store) -> None:
    def made(run: str, time: float | None, *hints: tuple[float, RunState]) -> None:
        store.put(f"runs/{run}/spec.yaml", b"")
        if time is not None:
            store.put(f"runs/{run}/result.json", json.dumps({"time": time}).encode())
        for changed, state in hints:
            hint(store, run, changed, state)

    made("told-1", 200.0, (100.0, RunState.RUNNING), (200.0, RunState.FINISHED))
    made("killed-1", 300.0, (110.0, RunState.RUNNING))
    made("copied-1", 150.0)
    made("running-1", None, (400.0, RunState.RUNNING))
    made("failed-1", None, (500.0, RunState.FAILED))
    made("damaged-1", None, (600.0, RunState.RUNNING))
    store.put("runs/damaged-1/result.json", b'{"time": 6')
    assert [run.id for run in finished_runs(store)] == ["killed-1", "told-1", "copied-1"]


def test_the_records_of_what_is_known_to_have_ended_are_not_asked(store: Store) -> None:
    for number in range(20):
        hint(store, f"a-{number}", 100.0 + number, RunState.FINISHED)
        store.put(f"runs/a-{number}/spec.yaml", b"")
    counting = CountingStore(store)
    assert len(finished_runs(counting)) == 20  # type: ignore[arg-type]
    assert counting.asked == {"children": 2}
