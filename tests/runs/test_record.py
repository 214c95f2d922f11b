"""The record of a run: identity, creation, finding, listing, deleting, and no secrets."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt.errors import NotFound, UserError
from igpt.runs import Run, create_run, find_run
from igpt.runs import events as ev
from igpt.runs.identity import check_name, run_id, slug, work_digest
from igpt.runs.listing import list_hints
from igpt.runs.provenance import provenance
from igpt.runs.state import RunState, Status
from igpt.storage import Store

CONFIG: dict[str, Any] = {"job": "pretrain", "steps": 10, "model": {"layers": 2}}


def make(store: Store, state: RunState = RunState.RUNNING, **options: Any) -> tuple[Run, bool]:
    values = {"job": "pretrain", "name": "first", "config": CONFIG, "inputs": {"data": "abc"}}
    return create_run(store, **{**values, **options}, status=lambda _: Status(state))


def test_the_same_work_is_the_run_that_exists(store: Store) -> None:
    first, created = make(store)
    again, created_again = make(store)
    assert (created, created_again) == (True, False)
    assert first.id == again.id


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED])
def test_after_a_failure_the_same_work_is_a_run_of_its_own(store: Store, state: RunState) -> None:
    first, _ = make(store)
    again, created = make(store, state)
    assert created
    assert again.id != first.id
    assert again.spec().digest == first.spec().digest


def test_new_asks_for_another_run(store: Store) -> None:
    ids = {make(store)[0].id, make(store, new=True)[0].id, make(store, new=True)[0].id}
    assert len(ids) == 3


def test_many_clients_at_once_make_one_run(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make(store), range(8)))
    assert sum(created for _, created in made) == 1
    assert len({run.id for run, _ in made}) == 1


def test_other_data_is_other_work(store: Store) -> None:
    assert make(store)[0].id != make(store, inputs={"data": "abd"})[0].id


def test_the_spec_reads_back_as_it_was_written(store: Store) -> None:
    run, _ = make(store)
    spec = run.spec()
    assert (spec.config, spec.inputs, spec.job, spec.id) == (
        CONFIG,
        {"data": "abc"},
        "pretrain",
        run.id,
    )


def test_a_run_is_found_by_the_beginning_of_its_name(store: Store) -> None:
    run, _ = make(store)
    assert find_run(store, run.id[:8]).id == run.id
    other, _ = make(store, name="firstly")
    assert find_run(store, other.id).id == other.id
    with pytest.raises(UserError, match="begins the names of 2 runs"):
        find_run(store, "first")


def test_a_run_that_is_not_there_names_the_nearest(store: Store) -> None:
    run, _ = make(store)
    with pytest.raises(NotFound, match=f'did you mean "{run.id}"') as caught:
        find_run(store, run.id.replace("first", "fist"))
    assert caught.value.exit_code == 4


def test_the_index_lists_the_newest_state_with_one_listing(store: Store) -> None:
    run, _ = make(store)
    run.event(ev.SUBMITTED, writer="client", attempt=1)
    run.event(ev.LAUNCHED, writer="supervisor", attempt=1)
    run.event(ev.STARTED, writer="worker", attempt=1)
    run.event(ev.FAILED, writer="supervisor", attempt=1, final=False)
    assert [(hint.run, hint.state) for hint in list_hints(store)] == [(run.id, RunState.RUNNING)]
    run.event(ev.FINISHED, writer="worker", attempt=1)
    assert list_hints(store)[0].state is RunState.FINISHED


def test_deleting_leaves_nothing_and_touches_no_other_run(store: Store) -> None:
    run, _ = make(store)
    other, _ = make(store, new=True)
    for one in (run, other):
        one.event(ev.SUBMITTED, writer="client", attempt=1)
        one.record.put("checkpoints/step-000000001/attempt-1/model.safetensors", b"x" * 100)
    run.delete()
    assert not [info.key for info in store.objects() if run.id in info.key]
    assert other.record.exists("checkpoints/step-000000001/attempt-1/model.safetensors")
    assert len(list_hints(store)) == 1


def test_events_read_back_in_the_order_of_time(store: Store) -> None:
    run, _ = make(store)
    for step in range(5):
        run.event(ev.CHECKPOINTED, writer="worker", step=step)
    assert [event.fields["step"] for event in run.events()] == list(range(5))


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_the_digest_does_not_depend_on_the_order_of_keys(config: dict[str, Any]) -> None:
    backwards = dict(reversed(config.items()))
    assert work_digest("a", config, {}) == work_digest("a", backwards, {})


def test_the_name_of_a_run_never_changes_silently() -> None:
    digest = work_digest("pretrain", CONFIG, {"data": "abc"})
    assert run_id("first", digest, 0) == "first-8642053b"


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a b", "a/b", "../a", "é", "a" * 41])
def test_a_name_that_cannot_be_a_key_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a run"):
        check_name(name)


def test_a_recipes_file_name_becomes_a_name() -> None:
    assert slug("My Recipe_2") == "my-recipe-2"
    assert check_name(slug("x" * 50 + "é")) == "x" * 40


def test_no_secret_gets_into_the_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    record = provenance(["igpt-jobs", "submit", "api_token=hunter2", "--store", "s3://b"], tmp_path)
    text = json.dumps(record)
    assert "hunter2" not in text
    assert record["packages"]["torch"]
    assert record["git"] is None


def test_the_code_is_recorded_as_commit_and_difference(tmp_path: Path) -> None:
    tmp_path = tmp_path / "tree"
    tmp_path.mkdir()

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "a.py").write_text("one\n")
    git("add", "a.py")
    git("-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-qm", "first")
    (tmp_path / "a.py").write_text("two\n")
    (tmp_path / "new.py").write_text("three\n")
    record = provenance([sys.executable], tmp_path)["git"]
    assert len(record["commit"]) == 40
    assert "+two" in record["diff"]
    assert record["untracked"] == ["new.py"]
