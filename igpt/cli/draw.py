"""What `watch` puts on a terminal: one run, or a table of many. Fits 60 columns, and any more."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    OverflowMethod,
    RenderableType,
    RenderResult,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from igpt.cli.common import age
from igpt.cli.view import (
    DAMAGED,
    Attempt,
    Row,
    RunView,
    attempt_line,
    clock,
    duration,
    sparkline,
    what_next,
)
from igpt.jobs.estimate import counted
from igpt.runs.state import RunState

_STYLES = {
    RunState.SUBMITTED: "yellow",
    RunState.QUEUED: "yellow",
    RunState.RUNNING: "green",
    RunState.FINISHED: "bold green",
    RunState.FAILED: "bold red",
    RunState.CANCELLED: "magenta",
    RunState.STALLED: "bold red",
    DAMAGED: "bold red",
    "lost": "red",
    "preempted": "yellow",
    "superseded": "magenta",
}
_ATTEMPTS = 8  # shown at most, the newest, two lines each
_OTHER_LINES = 18  # of the view of a run
_SILENT_SECONDS = 20.0  # without a sign of life before that is said
_MOST_BARS = 40
_LABEL = 12  # columns before the facts


@dataclass(frozen=True)
class Trouble:
    """The store has not answered since then (seconds since the epoch), and why, where it said."""

    since: float
    what: str = ""


@dataclass(frozen=True)
class RunScreen:
    """One run as seen at `now`."""

    view: RunView
    now: float
    trouble: Trouble | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view = self.view
        cut: OverflowMethod = "crop" if options.ascii_only else "ellipsis"
        yield _heading(view, self.trouble.since if self.trouble else self.now)
        yield from _trouble(self.trouble, self.now, cut)
        if view.progress.get("total"):
            yield Text()
            yield _bar(view)
        facts = _facts(view, self.now, bars=0 if options.ascii_only else _bars(options.max_width))
        if facts:
            yield Text()
            yield _pairs(facts)
        if view.attempts:
            yield Text()
            most = max(2, min(_ATTEMPTS, (console.height - _OTHER_LINES) // 2))
            lines = _attempts(view.attempts[-most:], self.now, 2 * options.max_width, cut)
            if (earlier := len(view.attempts) - most) > 0:
                lines = {"attempts": Text(f"{earlier} earlier ones", "dim")} | lines
            yield _pairs(lines)
        following = what_next(view)
        if following:
            yield Text()
            yield _pairs({"next": Text(following)})
        if view.state.active:
            yield Text("\nCtrl-C leaves; the run goes on", "dim")


@dataclass(frozen=True)
class TableScreen:
    """Many runs as seen at `now`."""

    rows: Sequence[Row]
    store: str
    now: float
    hidden: int = 0  # runs that stalled too long ago to be shown
    trouble: Trouble | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        active = sum(row.active for row in self.rows)
        yield Text.assemble((f"{active} active", "bold"), f" in {self.store}")
        yield from _trouble(self.trouble, self.now, "crop" if options.ascii_only else "ellipsis")
        yield Text()
        yield _table(self.rows, self.now, options.max_width)
        if self.hidden:
            hint = "igpt-jobs list --state stalled"
            yield Text(f"{self.hidden} more stalled for over a day: {hint}", "dim")
        yield Text("\nCtrl-C leaves; the runs go on", "dim")


def _heading(view: RunView, now: float) -> RenderableType:
    title = Text.assemble((view.run, "bold"), "  ", (view.state, _style(view.state)))
    if view.reason:
        title.append(f": {view.reason}")
    where = [view.job]
    if view.cluster:
        count = counted(view.workers or 0, "worker")
        job = f" as job {view.cluster_job}" if view.cluster_job else ""
        host = f" at {view.host}" if view.host else ""
        where.append(f"on {view.cluster}{job} with {count}{host}")
    subtitle = Text(" ".join(where), "dim")
    silent = now - view.heartbeat if view.heartbeat is not None else 0.0
    if view.state.active and silent > _SILENT_SECONDS:
        subtitle.append(f"; no sign of life for {duration(silent)}", "yellow")
    return Group(title, subtitle)


def _bar(view: RunView) -> RenderableType:
    progress = view.progress
    done, total = progress.get("done", 0), progress["total"]
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    percent = f"{100 * done // total} %"
    bar = ProgressBar(total=total, completed=done)
    grid.add_row(f"{progress.get('unit', '')} {done:,}/{total:,}".strip(), bar, percent)
    return grid


def _facts(view: RunView, now: float, bars: int) -> dict[str, Text]:
    """The lines of a running job, by name; what is not known has none."""
    progress = view.progress
    facts: dict[str, Text] = {}
    if view.seconds_left is not None and view.state is RunState.RUNNING:
        until = clock(now + view.seconds_left, now)
        facts["time left"] = Text(f"{duration(view.seconds_left)}, until {until}")
    if (loss := progress.get("loss")) is not None:
        facts["loss"] = Text(f"{loss:.4f}")
        if line := sparkline(view.losses, bars):
            span = view.losses[-1].step - view.losses[0].step
            facts["loss"].append(f"  {line}", "cyan").append(f"  {span:,} steps", "dim")
    if (loss := progress.get("validation_loss")) is not None:
        facts["validation"] = Text(f"{loss:.4f}")
    if (rate := progress.get("tokens_per_second")) is not None:
        speed = [f"{rate:,.0f} tokens/s"]
        if (images := progress.get("images_per_second")) is not None:
            speed.append(f"{images:,.0f} images/s")
        facts["speed"] = Text(", ".join(speed))
        mfu, wait = progress.get("mfu"), progress.get("data_wait")
        share = "n/a" if mfu is None else f"{100 * mfu:.0f} %"
        waited = "" if wait is None else f", data wait {100 * wait:.0f} %"
        facts["efficiency"] = Text(f"MFU {share}{waited}")
    if view.last_checkpoint:
        saved = view.last_checkpoint
        facts["checkpoint"] = Text(f"step {saved.step:,}, {duration(now - saved.time)} ago")
    return facts


def _attempts(
    attempts: Sequence[Attempt], now: float, cells: int, cut: OverflowMethod
) -> dict[str, Text]:
    """A line for each attempt, in at most so many cells with its name; `status` says all."""
    lines: dict[str, Text] = {}
    for one in attempts:
        line = Text(attempt_line(one, now))
        line.truncate(cells - 2 * _LABEL, overflow=cut)
        line.highlight_words([one.outcome], _style(one.outcome))
        lines[f"attempt {one.attempt}"] = line
    return lines


def _table(rows: Sequence[Row], now: float, width: int) -> Table:
    """The rows; the narrower the terminal, the fewer columns."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")  # a name has to be whole to be of use
    table.add_column("state", no_wrap=True)
    table.add_column("progress")
    with_bars, with_loss = width >= 110, width >= 80
    if with_bars:
        table.add_column("", min_width=16)
    if with_loss:
        table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("time left", no_wrap=True)
    for row in rows:
        done, total = row.progress.get("done"), row.progress.get("total")
        known = row.active and done is not None and total
        how = f"{row.progress.get('unit', '')} {done:,}/{total:,}" if known else _why(row, now)
        # As Text: what is in brackets in a reason is no markup.
        cells: list[RenderableType] = [
            Text(row.run),
            Text(row.state, _style(row.state)),
            Text(how.strip()),
        ]
        if with_bars:
            bar = ProgressBar(total=total, completed=done or 0, width=16) if known else ""
            cells.append(bar)
        if with_loss:
            loss = row.progress.get("loss")
            cells.append("" if loss is None else f"{loss:.4f}")
        cells.append("" if row.seconds_left is None else duration(row.seconds_left))
        table.add_row(*cells)
    return table


def _why(row: Row, now: float) -> str:
    """What is to be said of a run without progress."""
    if row.active:
        return row.reason
    return row.reason or f"{age(row.changed, now)} ago"


def _pairs(facts: dict[str, Text]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True, min_width=_LABEL - 2)
    grid.add_column()
    for name, value in facts.items():
        grid.add_row(name, value)
    return grid


def _trouble(trouble: Trouble | None, now: float, cut: OverflowMethod) -> RenderResult:
    if trouble:
        waited = duration(now - trouble.since)
        yield Text(f"No answer from the store for {waited}; asking again.", "red")
        if trouble.what:
            yield Text(trouble.what, "red", overflow=cut, no_wrap=True)


def _bars(width: int) -> int:
    """How many bars of a sparkline fit beside a loss and its span."""
    return max(0, min(_MOST_BARS, width - _LABEL - 28))


def _style(state: str) -> str:
    return _STYLES.get(state, "")
