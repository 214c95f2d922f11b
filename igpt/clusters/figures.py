"""The figures of a run while it runs, for those who watch many: TensorBoard and Prometheus.

A figure is a number that a rank says of its progress (`igpt.clusters.ranks.progress`), under a name
that is the same everywhere: in Ray's metrics (`igpt.clusters.ray.gauges`), in the text files of
Prometheus and on the dashboard in clusters/grafana/. The parent process of a node's ranks writes
them with its heartbeats. What cannot be written is a warning in its log; the run goes on.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, field_validator

from igpt.clusters.ranks.progress import Show, together
from igpt.config import Strict
from igpt.errors import IgptError, UserError
from igpt.runs import Run
from igpt.runs.attempts import read_claim

log = logging.getLogger("igpt")

#: A text file that nobody has written to for so long was left behind by a parent that was killed.
ABANDONED_SECONDS = 86_400.0


@dataclass(frozen=True)
class Figure:
    """One figure of a rank."""

    name: str
    key: str  # in the progress of a rank
    description: str


FIGURES = (
    Figure("igpt_loss", "loss", "Training loss of the latest step, in nats per token."),
    Figure("igpt_tokens_per_second", "tokens_per_second", "Tokens a second of all ranks together."),
    Figure("igpt_mfu", "mfu", "Model FLOPs utilisation of all ranks, 0 to 1."),
    Figure("igpt_step", "done", "Finished optimizer steps."),
    Figure("igpt_data_wait", "own_data_wait", "Share of time the rank waited for data, 0 to 1."),
)


class FiguresConfig(Strict):
    """Where the figures of a run are written."""

    tensorboard: str | None = Field(
        default=None, description="folder for TensorBoard's events; each run has its own in it"
    )
    prometheus: str | None = Field(
        default=None, description="folder that node_exporter's textfile collector reads"
    )

    @field_validator("tensorboard", "prometheus")
    @classmethod
    def _is_a_whole_path(cls, value: str | None) -> str | None:
        # The ranks' parent has a working directory of its own.
        if value is not None and not value.startswith(("/", "~/")):
            raise ValueError(f"{value!r} is not a path that begins with / or ~/")
        return value

    def folders(self) -> dict[str, Path]:
        """The folders that are asked for, by the name of their field."""
        named = {"tensorboard": self.tensorboard, "prometheus": self.prometheus}
        return {name: Path(os.path.expanduser(value)) for name, value in named.items() if value}

    def check(self) -> None:
        """Raises UserError where this machine cannot write what is asked for. Writes nothing."""
        for name, folder in self.folders().items():
            there = folder
            while not there.exists() and there != there.parent:
                there = there.parent
            if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
                raise UserError(
                    f"figures.{name}: {folder} cannot be written",
                    expected="a folder that is writable here, or a new one in such a folder",
                    mend=f"`{name}: null` under `figures` of the cluster file does without",
                )


class Recorder(Protocol):
    """Something that is shown figures, and closed in the end."""

    def show(self, rank: int, progress: Mapping[str, Any]) -> None:
        """Takes the progress of a rank. Raises OSError."""

    def close(self) -> None:
        """Ends. Raises OSError."""


def figures(progress: Mapping[str, Any]) -> dict[str, float]:
    """The figures in what a rank said of its progress; what is not known is left out.

    Only training has steps: a job that counts images or layers has no `igpt_step`.
    """
    return {
        figure.name: float(value)
        for figure in FIGURES
        if (value := progress.get(figure.key)) is not None
        and (figure.key != "done" or progress.get("unit") == "steps")
    }


@contextmanager
def recorded(config: FiguresConfig, run: Run, attempt: int, *, node: int = 0) -> Iterator[Show]:
    """What writes the figures of an attempt's ranks on this node, for `run_ranks(show=)`.

    It raises IgptError where a folder cannot be written.
    """
    recorders: dict[str, Recorder] = {}
    folders = config.folders()
    if "tensorboard" in folders and node == 0:
        recorders["tensorboard"] = TensorBoard(folders["tensorboard"], run, attempt)
    if "prometheus" in folders:
        recorders["prometheus"] = TextFile(folders["prometheus"], run.id, node)

    def told(name: str) -> Show:
        def show(rank: int, progress: Mapping[str, Any]) -> None:
            with _named(name, folders[name]):
                recorders[name].show(rank, progress)

        return show

    try:
        yield together(*map(told, recorders))
    finally:
        for name, recorder in recorders.items():
            try:
                with _named(name, folders[name]):
                    recorder.close()
            except IgptError as error:
                log.warning("%s", error)


class TensorBoard:
    """Rank 0's figures by step, in the folder of the run; the other ranks' are the same.

    An attempt has a file of its own. It begins by declaring void what earlier ones wrote from its
    first step on, so that no step shows twice. Written without the threads of tensorboardX's
    SummaryWriter: these die of a full disk, and then its next call waits for ever.
    """

    KEYS = ("loss", "tokens_per_second", "mfu", "data_wait", "learning_rate")

    def __init__(self, folder: Path, run: Run, attempt: int) -> None:
        self._folder = folder / run.id
        self._run = run
        self._attempt = attempt
        self._events: Any = None  # opened late: tensorboardX imports torch
        self._step = 0
        self._validated: int | None = None

    def show(self, rank: int, progress: Mapping[str, Any]) -> None:
        """Adds what is new. Raises OSError, and Unreachable where the claim cannot be read."""
        if rank != 0 or progress.get("unit") != "steps":
            return
        if self._events is None:
            self._open()
        step, validated = int(progress["done"]), progress.get("validation_step")
        if step > self._step:
            self._write(step, {key: progress.get(key) for key in self.KEYS})
            self._step = step
        if validated is not None and validated != self._validated:
            self._write(validated, {"validation_loss": progress["validation_loss"]})
            self._validated = validated
        self._events.flush()

    def close(self) -> None:
        """Ends the file of this attempt. Raises OSError."""
        if self._events is not None:
            self._events.close()

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        start = read_claim(self._run.record, self._attempt).start_step
        self._folder.mkdir(parents=True, exist_ok=True)
        events = EventsWriter(str(self._folder / "events"), f".attempt-{self._attempt:04d}")
        begin = SessionLog(status=SessionLog.START)
        events.write_event(Event(wall_time=time.time(), step=start + 1, session_log=begin))
        self._events = events

    def _write(self, step: int, values: Mapping[str, float | None]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        known = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in values.items()
            if value is not None
        ]
        if known:
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=known))
            self._events.write_event(event)


class TextFile:
    """The latest figures of this node's ranks, as Prometheus' node_exporter collects them.

    One file for each run and node, replaced whole and gone once the ranks have ended: Prometheus
    then ends the series, too. Of a parent that was killed the file stays until the next attempt on
    this node replaces it, or until another run finds it a day old.
    """

    def __init__(self, folder: Path, run: str, node: int) -> None:
        self._folder = folder
        self._path = folder / f"igpt-{run}-node-{node:04d}.prom"
        self._run = run
        self._ranks: dict[int, dict[str, float]] = {}

    def show(self, rank: int, progress: Mapping[str, Any]) -> None:
        """Replaces the file. Raises OSError."""
        if not (known := figures(progress)):
            return
        if not self._ranks:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self._folder, time.time())
        self._ranks[rank] = known
        # The collector takes every *.prom for whole.
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            temporary.write_text(exposition(self._run, self._ranks), encoding="utf-8")
            temporary.chmod(0o644)  # it runs as a user of its own
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Removes the file. Raises OSError."""
        self._path.unlink(missing_ok=True)


def exposition(run: str, ranks: Mapping[int, Mapping[str, float]]) -> str:
    """The figures of a run's ranks in Prometheus' text format, without timestamps.

    HELP lines are the same for all runs: node_exporter refuses files that disagree.
    """
    lines = []
    for figure in FIGURES:
        samples = [
            f'{figure.name}{{run="{_escaped(run)}",rank="{rank}"}} {_number(known[figure.name])}'
            for rank, known in sorted(ranks.items())
            if figure.name in known
        ]
        if samples:
            lines += [f"# HELP {figure.name} {figure.description}", f"# TYPE {figure.name} gauge"]
            lines += samples
    return "".join(f"{line}\n" for line in lines)


def remove_abandoned(folder: Path, now: float) -> None:
    """Removes text files of ours that nobody has written to for a day, where that is allowed."""
    for path in folder.glob("igpt-*-node-*.prom"):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if now - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def _number(value: float) -> str:
    """As Go reads it."""
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(repr(value), repr(value))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@contextmanager
def _named(name: str, folder: Path) -> Iterator[None]:
    """Says which field of the cluster file names the folder that failed."""
    try:
        yield
    except OSError as error:
        if isinstance(error, IgptError):  # the store's
            raise
        raise IgptError(
            f"figures.{name}: {folder} cannot be written: {error.strerror or error}",
            mend="The run goes on without",
        ) from error
