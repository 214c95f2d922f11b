"""`watch` and `list`: what follows from a record, what is drawn, and how real runs are shown."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from igpt.cli.draw import RunScreen, TableScreen, Trouble
from igpt.cli.look import Watched, last_checkpoint, recent_losses
from igpt.cli.status import summary
from igpt.cli.view import (
    DAMAGED,
    Attempt,
    Checkpoint,
    Loss,
    Row,
    RunView,
    attempts,
    changes,
    duration,
    extended,
    is_of_interest,
    is_settled,
    remaining,
    sparkline,
    what_next,
)
from igpt.cli.watch import watch
from igpt.clusters import status
from igpt.errors import Unreachable
from igpt.jobs.references import checkpoint_key
from igpt.runs import create_run
from igpt.runs import events as ev
from igpt.runs.attempts import Claim, claim
from igpt.runs.events import Event
from igpt.runs.state import RunState
from igpt.storage import Store
from tests.cli.command import igpt
from tests.cli.test_lightness import loaded
from tests.support import study
from tests.support.counting import CountingStore

NOW = 100_000.0
LONG = ("schedule.steps=100000", "checkpoints.every_steps=20")
PROGRESS = {
    "done": 1_240,
    "total": 1_000_000,
    "unit": "steps",
    "loss": 2.31,
    "validation_loss": 2.4,
    "tokens_per_second": 1_020_480.0,
    "images_per_second": 996.5,
    "mfu": None,
    "data_wait": 0.031,
}
KILLED = "node: rank 0 was killed by signal 9"
VIEW = RunView(
    run="a-name-of-forty-letters-and-digits-000001-1a2b3c4d",
    uri="s3://bucket/runs/x",
    job="pretrain",
    state=RunState.RUNNING,
    reason="",
    next="",
    exit_code=0,
    cluster="slurm",
    cluster_job="123456",
    workers=16,
    host="node-0042.cluster.example.org",
    progress=PROGRESS,
    heartbeat=NOW - 3,
    seconds_left=4_330.0,
    attempts=[
        Attempt(1, "failed", KILLED, 0, 16, "node-7", NOW - 900, NOW - 300),
        Attempt(2, "running", "", 1_200, 16, "node-9", NOW - 290),
    ],
    last_checkpoint=Checkpoint(1_200, NOW - 42),
    losses=[Loss(step, 5.0 - step / 500) for step in range(0, 1_240, 10)],
)
ROW = Row(VIEW.run, "running", NOW - 900, NOW - 290, "", PROGRESS, NOW - 3, 4_330.0)


def event(kind: str, attempt: int, **fields: Any) -> Event:
    return Event(NOW, "test", kind, {"attempt": attempt, **fields})


def drawn(what: RenderableType, width: int, encoding: str = "utf-8") -> str:
    class Output(StringIO):
        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

    output = Output()
    screen = Console(file=output, width=width, height=24, force_terminal=True, color_system=None)
    screen.print(what)
    return output.getvalue()


# What follows from a record


def test_each_attempt_says_where_it_began_and_how_it_ended() -> None:
    claims = [Claim(number, "w", f"host-{number}", 2, NOW, 10 * number) for number in (1, 2, 3)]
    history = [
        event(ev.FAILED, 1, **{"class": "node", "reason": "rank 0 was killed by signal 9"}),
        event(ev.PREEMPTED, 2, reason="asked to stop"),
    ]
    found = attempts([1, 2, 3, 4, 5], claims, history, RunState.QUEUED)
    assert [(one.attempt, one.outcome, one.reason, one.start_step) for one in found] == [
        (1, "failed", KILLED, 10),
        (2, "preempted", "asked to stop", 20),
        (3, "lost", "it left no word of its end", 30),
        (4, "lost", "it left no word of its end", None),
        (5, "waiting", "", None),
    ]
    assert [one.outcome for one in attempts([1], claims, [], RunState.RUNNING)] == ["running"]
    assert [one.outcome for one in attempts([1], [], [], RunState.RUNNING)] == ["starting"]
    assert [one.outcome for one in attempts([1], claims, [], RunState.STALLED)] == ["stalled"]


def test_the_time_left_follows_from_the_speed_that_was_seen() -> None:
    progress = {"done": 200, "total": 1000, "seconds_left": 7.0}
    assert remaining([], progress, NOW) is None
    assert remaining([(NOW, 200)], {"done": 200}, NOW) is None
    assert remaining([(NOW, 200)], {"done": 200, "total": 1000}, NOW) is None
    # One sign of life tells no speed: what the job itself says counts, less what has passed.
    assert remaining([(NOW - 2, 200)], progress, NOW) == 5.0
    assert remaining([(NOW - 9, 200)], progress, NOW) == 0.0
    # 100 in 40 seconds; 10 seconds of the 320 for the other 800 have passed.
    assert remaining([(NOW - 50, 100), (NOW - 10, 200)], progress, NOW) == 310.0


def test_a_step_that_is_trained_again_takes_the_place_of_its_future() -> None:
    old = [Loss(step, 1.0) for step in (10, 20, 30)]
    assert extended(old, []) == old
    assert extended(old, [Loss(20, 2.0)]) == [Loss(10, 1.0), Loss(20, 2.0)]
    assert extended(old, [Loss(40, 2.0)], most=2) == [Loss(30, 1.0), Loss(40, 2.0)]


def test_a_sparkline_falls_as_the_losses_do_and_keeps_its_width() -> None:
    falling = [Loss(step, 10.0 - step) for step in range(8)]
    assert sparkline(falling, 8) == "█▇▆▅▄▃▂▁"
    assert sparkline(falling, 4) == "█▆▃▁"
    assert sparkline(falling, 100) == sparkline(falling, 8)
    assert sparkline([falling[0], falling[7]], 8) == "█▁"
    # A share of the steps without a loss is as high as the one before it.
    assert sparkline([*falling[:4], Loss(63, 0.0)], 5) == "████▁"
    assert sparkline([Loss(1, 2.0), Loss(9, 2.0)], 8) == "▁▁"
    assert sparkline([Loss(1, 3.0)], 8) == ""
    assert sparkline(falling, 0) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119.4, "119 s"), (119.6, "2 min"), (3_570, "1 h 0 min"), (4_330, "1 h 12 min")],
)
def test_a_duration_is_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_next_is_what_a_failure_would_cost() -> None:
    assert what_next(VIEW) == "after a failure it would go on from step 1,200 and do 40 again"
    assert "begin again" in what_next(replace(VIEW, last_checkpoint=None))
    assert what_next(replace(VIEW, next="resume it")) == "resume it"


def test_how_long_a_run_is_silent_is_no_news() -> None:
    silent = replace(VIEW, state=RunState.STALLED, reason="no sign of life for 61 s", held=True)
    later = replace(silent, reason="no sign of life for 63 s")
    assert changes(VIEW, silent) == ["stalled: no sign of life for 61 s"]
    assert changes(silent, later) == []


def test_only_what_is_new_is_told() -> None:
    assert changes(VIEW, replace(VIEW, progress={**PROGRESS, "done": 1_300})) == []
    first = changes(None, VIEW)
    assert first[0].endswith(f"failed ({KILLED})")
    assert first[-1] == "running"
    ended = replace(
        VIEW,
        state=RunState.CANCELLED,
        reason="by the user",
        last_checkpoint=Checkpoint(1_250, NOW),
        attempts=[VIEW.attempts[0], replace(VIEW.attempts[1], outcome="cancelled")],
    )
    assert changes(VIEW, ended) == [
        "attempt 2: from step 1,200, 16 workers on node-9, cancelled",
        "checkpoint of step 1,250",
        "cancelled: by the user",
    ]


@pytest.mark.parametrize(
    ("state", "silent", "shown", "settled"),
    [
        ("running", 90_000, True, False),
        ("finished", 3_000, True, True),
        ("finished", 4_000, False, True),
        ("stalled", 3_000, True, False),
        ("stalled", 80_000, True, True),
        ("stalled", 90_000, False, True),
        (DAMAGED, 80_000, True, True),
    ],
)
def test_what_ended_long_ago_is_neither_shown_nor_asked_for(
    state: str, silent: float, shown: bool, settled: bool
) -> None:
    row = Row("a-1", state, 0.0, NOW - silent)
    assert is_of_interest(row, NOW) is shown
    assert is_settled(row, NOW) is settled


# What is drawn


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_run_fits_the_terminal(width: int, encoding: str) -> None:
    trouble = Trouble(NOW - 48, "the bucket 'b' cannot be reached: " + 10 * "http://a.long.url/")
    text = drawn(RunScreen(VIEW, NOW, trouble), width, encoding)
    assert all(len(line) <= width for line in text.splitlines())
    text.encode(encoding)
    flat = " ".join(text.split())
    for part in (
        f"{VIEW.run} running",
        "job 123456",
        "steps 1,240/1,000,000",
        "1 h 12 min",
        "2.3100",
        "2.4000",
        "1,020,480 tokens/s",
        "MFU n/a, data wait 3 %",
        "step 1,200, 42 s ago",
        "failed (node: rank 0 was killed by signal 9)",
        "from step 1,200, 16 workers on node-9",
        "No answer from the store for 48 s",
    ):
        assert part in flat, part
    assert ("█" in text) is (encoding == "utf-8")


def test_a_run_of_many_attempts_fits_a_small_terminal() -> None:
    many = [replace(VIEW.attempts[0], attempt=number, reason=200 * "x") for number in range(1, 31)]
    text = drawn(RunScreen(replace(VIEW, attempts=many), NOW), 60)
    assert "27 earlier" in text
    assert "attempt 30" in text
    assert "attempt 27 " not in text
    assert len(text.splitlines()) <= 30


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_keeps_names_whole_and_fits_the_terminal(width: int) -> None:
    rows = [
        ROW,
        replace(ROW, run="b-1", state="queued", reason="waiting for a free slot", progress={}),
        replace(ROW, run="c-2", state="failed", reason="crash: [/x] [red]y", progress={}),
    ]
    text = drawn(TableScreen(rows, "s3://bucket", NOW, hidden=3), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "2 active" in text
    assert "3 more stalled" in text
    assert "[/x]" in text  # a reason is no markup
    assert "[red]y" in text
    names = "".join(line.split(" ")[0] for line in text.splitlines()[3:])
    assert VIEW.run in names
    assert ("2.3100" in text) is (width >= 80)


# Real runs


def test_watching_a_run_off_a_terminal_tells_its_life_in_plain_lines(
    root: Store, tmp_path: Path
) -> None:
    run = study.start(root, study.cluster())
    watched = igpt("watch", run.id, folder=tmp_path, store=root.uri)
    assert watched.returncode == 0, watched.stderr
    lines = watched.stdout.splitlines()
    assert all(line.isprintable() and run.id in line for line in lines)
    assert lines[-1].endswith("finished")
    assert any("attempt 1: from step 0, 1 worker on" in line for line in lines)
    assert any(line.endswith("checkpoint of step 40") for line in lines)


def test_watching_exits_as_the_run_does_and_leaving_leaves_it_alive(
    root: Store, tmp_path: Path
) -> None:
    run = study.start(root, study.cluster(), *LONG)
    for arguments in ([run.id], []):
        watcher = subprocess.Popen(
            [sys.executable, "-m", "igpt.cli", "watch", *arguments, "--store", root.uri],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert watcher.stdout is not None
            assert run.id in watcher.stdout.readline()
            watcher.send_signal(signal.SIGINT)
            assert watcher.wait(30) == 130
            assert watcher.stderr is not None
            (line,) = watcher.stderr.read().splitlines()
            assert "goes on without you: igpt-jobs watch" in line
        finally:
            watcher.kill()
            watcher.communicate()
    assert status(run).state.active
    study.reached(run, 20)
    assert igpt("cancel", run.id, "--wait", folder=tmp_path, store=root.uri).returncode == 0
    assert igpt("watch", run.id, folder=tmp_path, store=root.uri).returncode == 5
    assert igpt("watch", "no-such-run", folder=tmp_path, store=root.uri).returncode == 4


def test_a_terminal_gets_a_live_view_unless_it_wants_none(
    root: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study.start(root, study.cluster())
    study.ended(run)

    def shown(**environment: str) -> str:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "igpt.cli", "watch", run.id, "--store", root.uri],
            cwd=tmp_path,
            stdout=slave,
            stderr=slave,
            stdin=slave,
            env=os.environ | {"COLUMNS": "60"} | environment,
        )
        os.close(slave)
        text = b""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                text += os.read(master, 65536)
            except OSError:  # the other end is closed
                break
        process.wait()
        os.close(master)
        return text.decode()

    live = shown(TERM="xterm-256color")
    assert "\x1b[" in live
    assert "steps 40/40" in live
    for plain in (shown(NO_COLOR="1"), shown(TERM="dumb")):
        assert "\x1b" not in plain
        assert "checkpoint of step 40" in plain
    monkeypatch.setenv("IGPT_STORE", root.uri)
    assert loaded(["watch", run.id], tmp_path) <= {"pydantic"}


def test_a_look_at_a_run_asks_its_store_for_little(root: Store) -> None:
    run = study.start(root, study.cluster(), *LONG)
    study.reached(run, 40)
    counting = CountingStore(run.record)
    watched = Watched(replace(run, record=counting))  # type: ignore[arg-type]
    assert watched.view().losses
    spent = []
    for _ in range(4):
        counting.asked.clear()
        view = watched.view()
        spent.append(counting.asked.total())
    assert min(spent) <= 5  # and one for each event since, of which a look sees few
    assert max(spent) <= 10
    assert view.attempts[0].outcome == "running"
    assert view.last_checkpoint
    assert view.last_checkpoint.step >= 40


def test_a_checkpoint_that_no_longer_counts_is_not_the_last_one(store: Store) -> None:
    run, _ = create_run(
        store, job="pretrain", name="tiny", config={}, inputs={}, status=lambda run: run.status()
    )

    def begun(attempt: int, start: int = 0, of: int | None = None) -> None:
        claim(run.record, Claim(attempt, "launch", "host", 1, NOW, start, of))

    def saved(step: int, attempt: int) -> None:
        run.record.put(f"{checkpoint_key(step, attempt)}/COMMITTED", b"")
        run.event(ev.CHECKPOINTED, writer="worker", attempt=attempt, step=step)

    def last() -> int | None:
        found = last_checkpoint(run, run.claims())
        return found.step if found else None

    begun(1)
    assert last() is None
    for step in (10, 20, 30):
        saved(step, 1)
    assert last() == 30
    begun(2, 10, 1)  # resume --from 10
    assert last() == 10
    assert summary(run, run.status())["last_checkpoint"]["step"] == 10
    saved(15, 2)
    assert last() == 15
    saved(40, 1)  # behind the back of the newer attempt
    assert last() == 15
    begun(3)  # resume --from 0
    assert last() is None


def test_the_last_losses_are_found_without_listing_all(store: Store) -> None:
    for first in (1, 501, 99_951, 100_001, 100_051):
        lines = [{"step": first + n, "loss": 1.0} for n in range(50)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        store.put(f"attempts/0002/metrics-{first:09d}.jsonl", text.encode())
    counting = CountingStore(store)
    found = recent_losses(counting, 2, 100_100)  # type: ignore[arg-type]
    assert [one.step for one in found] == list(range(100_001, 100_101))
    assert counting.asked == {"objects": 4, "get": 2}
    assert recent_losses(store, 1, 100_100) == []


class Flaky:
    """Something to watch in a store that is away after the first look, for two looks."""

    def __init__(self) -> None:
        self.looks = 0

    def look(self) -> int:
        self.looks += 1
        if self.looks in (2, 3):
            raise Unreachable("the bucket 'b' cannot be reached")
        return self.looks

    def pause(self, seen: int) -> float:
        return 0.0

    def ended(self, seen: int) -> bool:
        return seen == 5

    def screen(self, seen: int, now: float, trouble: Trouble | None) -> RenderableType:
        return Text(str(seen))

    def news(self, before: int | None, after: int, *, progress: bool) -> list[str]:
        return [f"look {after}"]

    def document(self, seen: int) -> dict[str, Any]:
        return {"look": seen}


def test_a_store_that_is_away_for_a_while_is_said_once_and_asked_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igpt.cli.watch.LOOK_SECONDS_REMOTE", 0.0)
    assert watch(Flaky(), False, "igpt-jobs watch") == 5
    shown = capsys.readouterr()
    assert [line.split("  ")[1] for line in shown.out.splitlines()] == [
        "look 1",
        "look 4",
        "look 5",
    ]
    assert shown.err.splitlines() == [
        "no answer from the store, asking again: the bucket 'b' cannot be reached",
        "the store answers again",
    ]
    assert watch(Flaky(), True, "igpt-jobs watch") == 5
    looks = [json.loads(line)["look"] for line in capsys.readouterr().out.splitlines()]
    assert looks == [1, 4, 5]


def test_a_store_that_is_away_from_the_beginning_is_an_error() -> None:
    class Away(Flaky):
        def look(self) -> int:
            raise Unreachable("the bucket 'b' cannot be reached")

    with pytest.raises(Unreachable):
        watch(Away(), False, "igpt-jobs watch")


def test_list_shows_the_newest_of_a_state_and_hides_nothing_behind_a_damaged_record(
    root: Store, tmp_path: Path
) -> None:
    old = study.start(root, study.cluster())
    study.ended(old)
    new = study.start(root, study.cluster(), *LONG)
    study.until(lambda: (beat := new.heartbeat()) and beat.progress, "it says how far it is")

    def listed(*options: str) -> dict[str, Any]:
        ended = igpt("list", "--json", *options, folder=tmp_path, store=root.uri)
        assert ended.returncode == 0, ended.stderr
        return {row["run"]: row for row in json.loads(ended.stdout)}

    assert list(listed()) == [new.id, old.id]
    assert listed()[new.id]["progress"]["total"] == 100_000
    assert list(listed("-n", "1")) == [new.id]
    assert list(listed("--state", "finished")) == [old.id]
    assert list(listed("--state", "finished", "--state", "running", "-n", "1")) == [new.id]
    assert listed("--state", "failed") == {}
    assert igpt("list", "--state", "asleep", folder=tmp_path, store=root.uri).returncode == 2
    study.send(study.processes(new), signal.SIGKILL)
    study.until(lambda: not study.processes(new), "it is dead")
    assert list(listed("--state", "stalled")) == [new.id]
    new.record.put("attempts/0001/heartbeat.json", b"{")
    assert {run: row["state"] for run, row in listed().items()} == {
        new.id: "damaged",
        old.id: "finished",
    }
