"""What earlier runs of a store have measured: the speed of training, how fast checkpoints go away.

Only the newest runs are looked at, and each until something is found, so that a plan is instant in
a store of any size. A run that is being deleted is passed over; one whose record is damaged is
named.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from igpt.clusters.base import ClusterConfig
from igpt.clusters.files import cluster_at
from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.jobs.estimate import Training, checkpoint_bytes
from igpt.runs import Run
from igpt.runs.attempts import attempt_numbers, read_claim
from igpt.runs.events import CHECKPOINTED, read_events
from igpt.runs.listing import list_hints
from igpt.runs.record import open_run
from igpt.runs.state import RunState
from igpt.storage import Store

#: Runs that are looked at, steps whose speed counts, checkpoints whose time counts.
_RUNS, _STEPS, _CHECKPOINTS = 24, 100, 5
#: A checkpoint of so many bytes tells how fast larger ones are written; a small one only waits.
_TELLING = 64_000_000


@dataclass(frozen=True)
class Measurement:
    """A number, and the run that measured it."""

    value: float
    run: str


@dataclass(frozen=True)
class Measured:
    """What earlier runs tell; None where none does."""

    speed: Measurement | None = None  # tokens per second and worker
    upload: Measurement | None = None  # bytes of checkpoints per second, reading back included
    notes: tuple[str, ...] = ()  # records that could not be read


def measured(root: Store, training: Training, cluster: ClusterConfig) -> Measured:
    """What the newest runs tell of such a training on such a cluster.

    The speed is that of a run of the same network, precision and device: the device's name in the
    cluster files, or the same kind of cluster where neither names one. The upload is that of a run
    on the same kind of cluster whose checkpoints are large enough to tell.
    """
    found = Measured()
    for run, text in _trainings(root):
        try:
            for attempt in reversed(attempt_numbers(run.record)):
                if found.speed and found.upload:
                    return found
                found = _look(run, text, attempt, training, cluster, found)
        except NotFound:
            continue  # deleted meanwhile, or never started
        except (DataCorrupt, UserError) as error:
            found = replace(found, notes=(*found.notes, str(error)))
    return found


def _look(
    run: Run, text: str, attempt: int, training: Training, cluster: ClusterConfig, found: Measured
) -> Measured:
    """What one attempt adds to what is found already."""
    there = cluster_at(run, attempt)
    if found.upload is None and there.kind == cluster.kind:
        found = replace(found, upload=_upload(run, attempt, checkpoint_bytes(training.model)))
    if found.speed is None and _same_device(there, cluster) and _same_work(run, text, training):
        found = replace(found, speed=_speed(run, attempt))
    return found


def _trainings(root: Store) -> Iterator[tuple[Run, str]]:
    """The newest pretrainings that have started, with the text of their specs."""
    idle = (RunState.SUBMITTED, RunState.QUEUED)
    hints = [hint for hint in list_hints(root) if hint.state not in idle][:_RUNS]
    runs = [open_run(root, hint.run) for hint in hints]
    with ThreadPoolExecutor(8) as pool:
        for run, text in zip(runs, pool.map(_spec_text, runs), strict=True):
            if re.search(r"^job: pretrain$", text, re.MULTILINE):
                yield run, text


def _spec_text(run: Run) -> str:
    try:
        return run.record.get("spec.yaml").decode()
    except NotFound:
        return ""


def _same_work(run: Run, text: str, training: Training) -> bool:
    """Whether a run trains the same network in the same precision."""
    shape = training.model.model_dump()
    # Reading YAML takes longer than all the rest; most runs can be told apart without.
    if not all(f" {name}: {value}\n" in text for name, value in shape.items()):
        return False
    config = run.spec().config
    settled = {name: value for name, value in config["model"].items() if name != "preset"}
    same = (shape, training.recipe.precision, training.device)
    return (settled, config["precision"], config["device"]) == same


def _same_device(there: ClusterConfig, here: ClusterConfig) -> bool:
    then, now = there.device.name, here.device.name
    if then is None or now is None:
        return then is now and there.kind == here.kind
    return then.casefold() == now.casefold()


def _speed(run: Run, attempt: int) -> Measurement | None:
    """The median over an attempt's last steps."""
    folder = f"attempts/{attempt:04d}"
    parts = [name for name in run.record.children(folder) if name.startswith("metrics-")]
    rates: list[float] = []
    for part in sorted(parts, reverse=True):
        lines = _lines(run, f"{folder}/{part}")
        rates += [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
        if len(rates) >= _STEPS:
            break
    if not rates:
        return None
    return Measurement(_median(rates) / read_claim(run.record, attempt).workers, run.id)


def _median(values: list[float]) -> float:
    import statistics  # brings decimal and random, which a listing does without

    return statistics.median(values)


def _lines(run: Run, key: str) -> list[dict[str, Any]]:
    """The lines of a part of the metrics, the last first."""
    try:
        return [json.loads(line) for line in reversed(run.record.get(key).splitlines()[-_STEPS:])]
    except ValueError as error:
        raise DataCorrupt(f"{run.uri}/{key} is damaged: {error}") from None


def _upload(run: Run, attempt: int, size: int) -> Measurement | None:
    """The median over the last checkpoints, where they are large enough for one of `size` bytes."""
    events = read_events(run.record, {CHECKPOINTED}, last=_CHECKPOINTS)
    saved = [event.fields for event in events if event.attempt == attempt]
    rates = [
        fields["bytes"] / fields["seconds"]
        for fields in saved
        if fields.get("seconds") and fields.get("bytes", 0) >= min(_TELLING, size / 10)
    ]
    return Measurement(_median(rates), run.id) if rates else None
