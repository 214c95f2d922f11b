"""A need held against a cluster, one subject after the other. Pure.

Each function returns its part of a forecast. Every number says where it comes from, and what is not
known is said to be unknown.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from igpt.clusters.base import DeviceConfig, Limits
from igpt.clusters.planning.devices import GIB, device_memory, is_gpu
from igpt.clusters.planning.measured import Measured
from igpt.jobs.estimate import (
    Memory,
    Precision,
    Training,
    checkpoint_bytes,
    checkpoints_kept,
    paper_learning_rate,
    readable_bytes,
    training_memory,
)
from igpt.training.config import TOKENS_ON_CPU
from igpt.training.throughput import peak_flops

#: Share of a device's peak that training is assumed to reach where nothing has measured it. GPT-2
#: sized networks are reported at 0.3 to 0.6 (llm.c, llm-foundry, nanoGPT); narrow ones are slower.
ASSUMED_MFU = 0.35
#: Seconds that an attempt is assumed to take until its first step: imports, data, compilation.
STARTUP_SECONDS = 120.0
#: Share of a device's memory that a network can have; the rest goes to CUDA and to gaps.
USABLE_MEMORY = 0.9
#: A learning rate this factor from the paper's, or further, is worth a word.
FAR_RATE = 2.0


@dataclass(frozen=True)
class Forecast:
    """What a run will cost, for people and for programs, and what is wrong with that."""

    facts: dict[str, str] = field(default_factory=dict)  # in the order of showing
    warnings: list[str] = field(default_factory=list)  # what will go wrong, and what to do
    notes: list[str] = field(default_factory=list)  # what is worth knowing
    numbers: dict[str, Any] = field(default_factory=dict)  # None where something is not known


@dataclass(frozen=True)
class Known:
    """What a need is held against."""

    workers: int
    limits: Limits
    measured: Measured
    free: int | None = None  # bytes where the output goes; None where that is no directory
    upload: float | None = None  # bytes per second, as somebody states it


def joined(parts: Iterable[Forecast]) -> Forecast:
    """The parts as one, in their order."""
    whole = Forecast()
    for part in parts:
        whole.facts.update(part.facts)
        whole.warnings.extend(part.warnings)
        whole.notes.extend(part.notes)
        whole.numbers.update(part.numbers)
    return whole


def memory_of_training(training: Training, known: Known) -> Forecast:
    """The memory of a worker's step, with the micro batch that the recipe says or auto finds."""
    recipe, device = training.recipe, known.limits.device
    gpu = is_gpu(device, training.device)
    compiled = recipe.compile is True or (recipe.compile == "auto" and gpu is True)
    memory = training_memory(training.model, recipe.precision, compiled=compiled)
    share = math.ceil(recipe.batch.global_ / known.workers)
    capacity = device_memory(device)
    if recipe.batch.micro != "auto":
        images = min(recipe.batch.micro, share)
    elif gpu is False:
        images = max(1, min(share, TOKENS_ON_CPU // training.model.positions))
    else:
        images = share
        while images > 1 and capacity and memory.of(images) > USABLE_MEMORY * capacity:
            images //= 2  # as auto does
    how = f"{recipe.precision}, {'with' if compiled else 'without'} torch.compile"
    return memory_of_worker(memory, images, known, key="batch.micro", how=how)


def memory_of_worker(
    memory: Memory, images: int, known: Known, *, key: str, how: str = "float32"
) -> Forecast:
    """Memory with so many images at once against that of the device. key: what sets the images."""
    capacity = device_memory(known.limits.device)
    total, most = memory.of(images), None
    parts = {**memory.fixed, "activations": images * memory.per_image}
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    at_once = f"{images} image{'' if images == 1 else 's'} at once"
    line = f"{_gib(total)} GiB a worker, computed: {listed} ({at_once}, {how})"
    warnings = []
    if capacity is None:
        line += "; the device's is unknown: device.memory_gb in the cluster file"
    else:
        most = memory.most_images(USABLE_MEMORY * capacity)
        enough = f"room for {most} at once" if most else "too little"
        line += f"; the device has {_gib(capacity)}, {enough}"
        has = f"the device has {_gib(capacity)}, of which {USABLE_MEMORY:.0%} can be used"
        if most == 0:
            fixed = sum(memory.fixed.values())
            warnings.append(
                f"A worker needs {_gib(fixed)} GiB before its first image and "
                f"{_gib(memory.per_image)} for each, and {has}. Take a device with more memory or "
                "a smaller network; more workers do not help, as each holds the whole network."
            )
        elif images > most:
            warnings.append(f"{images} images need {_gib(total)} GiB, and {has}. Set {key}={most}.")
    numbers = {
        "memory_bytes": total,
        "memory": parts,
        "images_at_once": images,
        "device_memory_bytes": None if capacity is None else round(capacity),
        "most_images_at_once": most,
    }
    return Forecast({"memory": line}, warnings, numbers=numbers)


def recipe_of_training(training: Training, known: Known) -> Forecast:
    """What is unusual about the recipe, which may yet be meant."""
    notes = []
    rate, paper = training.recipe.optimizer.learning_rate, paper_learning_rate(training.model)
    if paper is not None and not 1 / FAR_RATE < rate / paper[1] < FAR_RATE:
        side = training.model.resolution
        notes.append(
            f"The paper trains {paper[0]} at {side}x{side} with a learning rate of {paper[1]:g}; "
            f"this is {rate:g}. optimizer.learning_rate={paper[1]:g} takes the paper's."
        )
    rows, uneven = divmod(training.recipe.batch.global_, known.workers)
    if uneven:
        notes.append(
            f"{known.workers} workers do not divide {training.recipe.batch.global_} images evenly: "
            f"those with {rows + 1} set the pace for those with {rows}."
        )
    return Forecast(notes=notes)


def speed_of_training(training: Training, known: Known) -> tuple[float | None, Forecast]:
    """Tokens per second of all workers together, by the best source there is, or None."""
    device, precision = known.limits.device, training.recipe.precision
    found, stated = known.measured.speed, device.tokens_per_second
    each: float | None = None
    source, words, notes = None, "", []
    if found is not None:
        each, source, words = found.value, "measured", f"measured by run {found.run}"
        if device.name is None:
            words += " (neither cluster file names its device)"
        if stated is not None and not 0.8 < stated / each < 1.25:
            notes.append(
                f"The cluster file states {stated:,.0f} tokens/s, and run {found.run} measured "
                f"{each:,.0f} with this network; the latter is reckoned with."
            )
    elif stated is not None:
        each, source, words = stated, "stated", "stated in the cluster file"
    elif (peak := peak_of(device, precision)) is not None:
        each = ASSUMED_MFU * peak / training.model.training_flops_per_token()
        source, words = "assumed", assumed(peak, device, precision)
    numbers = {"tokens_per_second_per_worker": each, "speed_source": source}
    if each is None:
        line = (
            "unknown: no run of this network, precision and device in the store, and the cluster "
            "file has neither device.tokens_per_second nor a device.name whose peak is known. A "
            "short run measures it: schedule.steps=200 schedule.warmup=10"
        )
        return None, Forecast({"speed": line}, numbers=numbers)
    line = f"{each:,.0f} tokens/s a worker, {words}"
    return each * known.workers, Forecast({"speed": line}, notes=notes, numbers=numbers)


def checkpoints_of_training(training: Training, known: Known, speed: float | None) -> Forecast:
    """Checkpoints against the grace, the time limit and the disk. speed: of all workers."""
    limits, found = known.limits, known.measured.upload
    size = checkpoint_bytes(training.model)
    newest, milestones = checkpoints_kept(training.recipe)
    rate = found.value if found else known.upload
    step = training.tokens / training.recipe.schedule.steps / speed if speed else None  # seconds
    line = f"{readable_bytes(size)} each, weights and Adam's state in float32"
    warnings, seconds = [], None
    if rate is None:
        line += "; how long one takes to write is unknown: no run here has saved one of this size"
    else:
        by = f"measured by run {found.run}" if found else "as stated"
        seconds = size / rate
        line += f"; written in {duration(seconds)} at {readable_bytes(rate)}/s, {by}"
        # Workers agree to stop at their next exchange, and only then save.
        waits = (step or 0) * training.recipe.sync_every
        needed = seconds + waits
        if needed > limits.grace_seconds:
            warnings.append(
                f"Asked to stop, a run needs {duration(needed)} to save and has a grace of "
                f"{duration(limits.grace_seconds)}: what it did since its last checkpoint would be "
                f"lost each time. Set grace_seconds to {math.ceil(1.5 * needed)} or more if the "
                "cluster allows it; else lower "
                f"{'sync_every' if waits > seconds else 'checkpoints.every_minutes'}, so that "
                "less is lost."
            )
    interval, notes = _interval(training, step), []
    if interval is None and training.recipe.checkpoints.every_steps is None:
        notes.append(
            "Nothing is saved between milestones, so a lost machine may cost the whole run. Set "
            "checkpoints.every_minutes=15."
        )
    elif interval is not None and limits.time_limit is not None and interval > limits.time_limit:
        warnings.append(
            f"A checkpoint is due every {duration(interval)} and the time limit is "
            f"{duration(limits.time_limit)}: an attempt is saved only in its grace, or not at all. "
            f"Set checkpoints.every_minutes={max(1, int(limits.time_limit / 240))}."
        )
    kept = newest + milestones
    words = f"{readable_bytes(kept * size)} for the newest {newest} checkpoints"
    words += f" and {milestones} milestones" if milestones else ""
    numbers = {
        "checkpoint_bytes": size,
        "checkpoints_kept": kept,
        "checkpoint_seconds": seconds,
        "grace_seconds": limits.grace_seconds,
    }
    # An older one goes only when the next has been read back.
    words += ", and one more while it is written"
    space = space_on_disk((kept + 1) * size, words, known.free)
    return joined([Forecast({"checkpoints": line}, warnings, notes, numbers), space])


def space_on_disk(needed: int, words: str, free: int | None) -> Forecast:
    """What is written against what is free."""
    warnings = []
    if free is not None:
        words += f"; {readable_bytes(free)} are free"
        if needed > free:
            warnings.append(
                f"{readable_bytes(needed)} will be written and {readable_bytes(free)} are free. "
                "Make room, take another store, or keep less."
            )
    numbers = {"disk_bytes": needed, "disk_free_bytes": free}
    return Forecast({"disk": words}, warnings, numbers=numbers)


def time_and_requeues(seconds: float | None, known: Known, *, unknown: str) -> Forecast:
    """The time of the whole, and how many attempts the time limit makes of it.

    unknown: what to say where there are no seconds.
    """
    limit, grace = known.limits.time_limit, known.limits.grace_seconds
    facts, warnings, hours, requeues = {"time": unknown}, [], None, None
    if seconds is not None:
        hours = seconds * known.workers / 3600
        what = "GPU" if peak_of(known.limits.device, "float32") else "worker"
        facts["time"] = (
            f"about {duration(seconds)} on {known.workers} workers = {_hours(hours)} {what}-hours"
        )
    if limit is not None:
        useful = limit - grace - STARTUP_SECONDS
        if useful <= 0:
            warnings.append(
                f"The time limit of {duration(limit)} leaves nothing for work after the grace of "
                f"{duration(grace)} and some {duration(STARTUP_SECONDS)} to start. Raise it."
            )
        elif seconds is not None:
            requeues = max(0, math.ceil(seconds / useful) - 1)
            facts["requeues"] = (
                f"{requeues} by the time limit of {duration(limit)}, less the grace of "
                f"{duration(grace)} and, assumed, {duration(STARTUP_SECONDS)} to start"
            )
    numbers = {
        "seconds": seconds,
        "worker_hours": hours,
        "time_limit_seconds": limit,
        "requeues": requeues,
    }
    return Forecast(facts, warnings, numbers=numbers)


def peak_of(device: DeviceConfig, precision: Precision) -> float | None:
    """The peak of a named device in FLOP/s; None where it is not known."""
    return peak_flops(device.name, precision) if device.name else None


def assumed(peak: float, device: DeviceConfig, precision: Precision) -> str:
    """In words, the speed that is assumed of a device."""
    return f"assumed: {ASSUMED_MFU:.0%} of {device.name}'s {peak / 1e12:g} TFLOP/s in {precision}"


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3.4 h`, `5.2 days`."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def _interval(training: Training, step: float | None) -> float | None:
    """Seconds between two checkpoints; None where none are due, or it cannot be known."""
    settings = training.recipe.checkpoints
    by_time = None if settings.every_minutes is None else 60 * settings.every_minutes
    by_steps = settings.every_steps * step if settings.every_steps and step else None
    return min((each for each in (by_time, by_steps) if each is not None), default=None)


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.0f}"
