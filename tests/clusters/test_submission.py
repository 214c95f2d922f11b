"""What happens around a submission on the local cluster: the code that runs, and runs in a row."""

import json
import signal
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from igpt.clusters import cancel, resume, status
from igpt.clusters.attempts import wait_for_others
from igpt.clusters.local.config import LocalCluster
from igpt.clusters.ranks.requests import Requests
from igpt.clusters.steering import code_of
from igpt.clusters.submission import Proposal, accept, propose
from igpt.config import load
from igpt.errors import UserError
from igpt.jobs import find_job
from igpt.jobs.references import committed_checkpoints
from igpt.jobs.waiting import check_can_finish
from igpt.runs import Run, create_run
from igpt.runs import events as ev
from igpt.runs.reading import read_json
from igpt.runs.record import open_run
from igpt.runs.state import RunState, Sight
from igpt.storage import Store, open_store
from tests.cli.command import igpt
from tests.support import source_tree, study

LONG = ("schedule.steps=100000", "checkpoints.every_steps=20")
LOCAL = "kind: local\nthreads: 1\nheartbeat_seconds: 0.3\n"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that the command line and all it starts run from."""
    folder = source_tree.checkout(tmp_path / "tree")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """The folder where the user types, with his recipes."""
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(f"job: pretrain\n{study.TRAINING}")
    (folder / "here.yaml").write_text(LOCAL)
    return folder


def command(store: Store, desk: Path, *arguments: str) -> str:
    """What `igpt-jobs` says for people; it has to end well."""
    done = igpt(*arguments, folder=desk, store=store.uri)
    assert done.returncode == 0, done.stderr
    return done.stderr


def submitted(store: Store, desk: Path, *arguments: str) -> Run:
    """The run of a submission by the command line."""
    given = (*arguments, "--cluster", "here.yaml", "--json")
    done = igpt(*given, folder=desk, store=store.uri)
    assert done.returncode == 0, done.stderr
    return open_run(store, json.loads(done.stdout)["run"])


def proposed(
    store: Store,
    *before: Run,
    model: str | None = None,
    where: LocalCluster | None = None,
) -> Proposal:
    """To draw an image from a model that another run, the first by default, has still to make."""
    job = find_job("generate")
    text = f"model: {model or before[0].id}\nsamples: 1\ncompletions: 0"
    return propose(
        store,
        job,
        load(job.config, text, "drawn.yaml"),
        where or study.cluster(),
        folder=Path("/"),
        arguments=["test"],
        name="drawn",
        after=before,
    )


def after(store: Store, *before: Run, model: str | None = None) -> Run:
    """Draws an image when other runs have finished."""
    return accept(proposed(store, *before, model=model)).run


def recorded(store: Store, name: str, job: str = "pretrain", **inputs: Any) -> Run:
    """A run that nobody has started."""
    return create_run(store, job=job, name=name, config={}, inputs=inputs, status=Run.status)[0]


def running(run: Run) -> None:
    study.until(lambda: status(run).state is RunState.RUNNING, f"{run.id} runs")


def test_what_was_submitted_runs_although_the_tree_changes_while_it_waits(
    root: Store, desk: Path, tree: Path
) -> None:
    first = study.start(root, study.cluster(), *LONG)
    running(first)
    # What runs needs both: a file that git knows, changed, and one that it does not know.
    entries = tree / "igpt" / "jobs" / "entries"
    with (entries / "pretrain.py").open("a") as file:
        file.write("\nimport igpt.jobs.entries.mine\n")
    (entries / "mine.py").write_text("")
    second = submitted(root, desk, "submit", "tiny.yaml")
    assert status(second).state is RunState.QUEUED
    recorded = read_json(second.record, "provenance.json")["code"]
    assert recorded["changed"] == ["igpt/jobs/entries/pretrain.py"]
    assert recorded["untracked"] == ["igpt/jobs/entries/mine.py"]
    (entries / "mine.py").unlink()
    source_tree.change(tree)
    cancel(first)
    ended = study.ended(second)
    assert ended.state is RunState.FINISHED, ended.reason
    assert recorded["digest"] == code_of(second)
    with tarfile.open(fileobj=BytesIO(root.get(f"code/{code_of(second)}.tar.gz"))) as shipped:
        assert "igpt/jobs/entries/mine.py" in shipped.getnames()


def test_resume_goes_on_with_the_same_code_and_with_the_changed_one_only_if_told_to(
    root: Store, desk: Path, tree: Path
) -> None:
    run = submitted(root, desk, "submit", "tiny.yaml", *LONG)
    submitted_with = code_of(run)
    study.reached(run, 20)
    cancel(run)
    assert study.ended(run).state is RunState.CANCELLED
    source_tree.change(tree)
    command(root, desk, "resume", run.id)
    study.until(lambda: len(run.claims()) == 2, "the second attempt claims")
    study.reached(run, run.claims()[1].start_step + 20)
    assert code_of(run) == submitted_with
    cancel(run)
    assert study.ended(run).state is RunState.CANCELLED
    command(root, desk, "resume", run.id, "--new-code")
    ended = study.ended(run)
    assert (ended.state, ended.exit_code) == (RunState.FAILED, 2)
    assert source_tree.CHANGED in ended.reason
    assert code_of(run) != submitted_with
    assert root.exists(f"code/{code_of(run)}.tar.gz")


def test_files_that_git_does_not_know_are_counted_and_large_ones_are_refused(
    root: Store, desk: Path, tree: Path
) -> None:
    (tree / "notes.py").write_text("")
    shown = igpt("submit", "tiny.yaml", "--dry-run", folder=desk, store=root.uri)
    assert " + 1 untracked file; " in shown.stdout
    with (tree / "weights.bin").open("wb") as file:
        file.truncate(10_000_001)
    before = {info.key for info in root.objects()}
    refused = igpt("submit", "tiny.yaml", "--yes", folder=desk, store=root.uri)
    assert refused.returncode == 2
    assert f"weights.bin (10.0 MB) in {tree} cannot be shipped" in refused.stderr
    assert ".gitignore" in refused.stderr
    assert {info.key for info in root.objects()} == before


def test_a_whole_study_is_submitted_in_one_go_before_anything_of_it_exists(
    tmp_path: Path, desk: Path
) -> None:
    digits = load_digits()
    for number in range(60):
        split = ("train", "validation", "test")[number // 10 % 3]
        place = desk / "images" / split / str(digits.target[number])
        place.mkdir(parents=True, exist_ok=True)
        grey = (digits.images[number] * 15.9).astype(np.uint8)
        Image.fromarray(np.stack([grey, 255 - grey, grey], -1)).save(place / f"{number:04}.png")
    store = open_store(str(tmp_path / "store"))
    with study.cleaned(store):
        source = ("source=folder:images", "output=data/digits", "resolution=8", "colors=16")
        shard = submitted(store, desk, "submit", "shard", *source)
        trained = submitted(store, desk, "submit", "tiny.yaml", "--after", shard.id)
        probe = ("layers=[0]", "l2=[0.1]", "budgets=[20]", "seeds=[1]", "subjects=[raw pixels]")
        model = f"model={trained.id}"
        probed = submitted(store, desk, "sweep", "probe", model, *probe, "--after", trained.id)
        assert trained.spec().inputs["after"] == [shard.id]
        for run in (shard, trained, probed):
            ended = study.ended(run, 300)
            assert ended.state is RunState.FINISHED, ended.reason
        happened = [
            run.last_event(kind)
            for run in (shard, trained, probed)
            for kind in (ev.STARTED, ev.FINISHED)
        ]
        times = [event.time for event in happened if event]
        assert len(times) == 6
        assert times == sorted(times)
        # What each found when its turn came is in its record, and so are the digests of it.
        assert trained.spec().config["model"]["resolution"] == 8
        assert probed.spec().config["model"].startswith(f"runs/{trained.id}/checkpoints/")
        assert {"after", "folder", "data"} <= trained.spec().inputs.keys()


@pytest.mark.parametrize("how", ["failed", "cancelled", "deleted"])
def test_a_run_after_one_that_will_not_finish_fails_and_says_why(root: Store, how: str) -> None:
    first = study.start(root, study.cluster(retries={"node": 0}), *LONG)
    running(first)
    later = after(root, first)
    assert status(later).state is RunState.QUEUED
    if how == "failed":
        study.send(study.processes(first, "igpt.jobs"), signal.SIGKILL)
    elif how == "cancelled":
        cancel(first)
    else:
        first.delete()
    ended = study.ended(later)
    assert (ended.state, ended.exit_code) == (RunState.FAILED, 2)
    assert ended.reason.startswith(f"user-error: run {first.id}, which has to finish first, ")
    assert how in ended.reason
    assert later.claims() == []
    if how != "deleted":
        with pytest.raises(UserError, match=f"resume {first.id} first"):
            resume(later)


def test_a_run_that_was_deleted_is_gone_whatever_its_ranks_write_after_that(store: Store) -> None:
    run, _ = create_run(store, job="shard", name="s", config={}, inputs={}, status=status)
    check_can_finish([run])
    run.delete()
    run.event(ev.STARTED, writer="worker", attempt=1)
    with pytest.raises(UserError, match="was deleted"):
        check_can_finish([run])


def test_a_run_that_waits_for_another_can_be_cancelled_and_resumed_to_wait_again(
    root: Store,
) -> None:
    first = study.start(root, study.cluster(), *LONG)
    running(first)
    later = after(root, first)
    assert status(later).state is RunState.QUEUED
    cancel(later)
    assert study.ended(later).state is RunState.CANCELLED
    assert status(first).state is RunState.RUNNING
    resume(later)
    assert status(later).state is RunState.QUEUED
    assert later.claims() == []


def test_a_run_after_one_that_has_finished_starts_at_once(root: Store) -> None:
    first = study.start(root, study.cluster())
    assert study.ended(first).state is RunState.FINISHED
    another = recorded(root, "another")  # which finishes last
    another.record.create("result.json", json.dumps({"time": time.time() + 60}).encode())
    later = after(root, first, model="latest")
    assert not later.spec().is_deferred
    assert later.spec().config["model"].startswith(f"runs/{first.id}/checkpoints/")
    assert study.ended(later).state is RunState.FINISHED


def test_the_latest_model_of_a_run_that_waits_is_that_of_the_pretraining_it_waits_for(
    store: Store,
) -> None:
    first, second = recorded(store, "first"), recorded(store, "second")
    shard = recorded(store, "shard", job="shard")
    latest = proposed(store, shard, first, first, model="latest")
    assert latest.spec.config["model"] == latest.facts["model"] == first.id
    assert proposed(store, shard, model="latest").spec.config["model"] == "latest"
    with pytest.raises(UserError, match=f"which .* {first.id}, {second.id}.* Name one: model=RUN"):
        proposed(store, first, second, model="latest")
    named = proposed(store, first, second, model=second.id)
    assert named.spec.config["model"] == second.id


def test_the_checkpoint_a_run_was_submitted_with_is_there_when_its_turn_comes(root: Store) -> None:
    def whole(address: str) -> bool:
        return root.exists(f"{address}/COMMITTED")

    one = study.cluster(max_parallel=1)
    training = study.start(root, one, *LONG, "checkpoints.keep=1")
    study.reached(training, 20)
    asked = proposed(root, model=training.id, where=one)
    late = asked.spec.config["model"]
    study.until(lambda: not whole(late), "the checkpoint is dropped before the user says yes")
    drawn = accept(asked).run
    held = drawn.spec().config["model"]
    assert held > late
    newest = max(committed_checkpoints(training))[0]
    study.reached(training, newest + 60)
    assert whole(held)
    assert len(committed_checkpoints(training)) <= 3  # the one that is just being dropped, too
    cancel(training)
    assert study.ended(drawn).state is RunState.FINISHED
    assert whole(held)
    resume(training)
    study.until(lambda: not root.objects(held), "what nobody needs any more is dropped")


def test_a_run_that_waits_says_for_which(store: Store) -> None:
    first = recorded(store, "first")
    second = recorded(store, "second", after=[first.id], folder="/")
    second.event(ev.SUBMITTED, writer="client", attempt=1)
    second.event(ev.LAUNCHED, writer="supervisor", attempt=1)
    requests = Requests(second, 0.1, signals=False)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_others, second, 1, study.cluster(), requests)
        try:
            study.until(second.heartbeat, "it says that it waits", 30)
            assert second.status(sight=Sight(True)).reason == f"waiting for run {first.id}"
        finally:
            first.record.create("result.json", b"{}")
        assert waiting.result(30)
