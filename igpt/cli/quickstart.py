"""`igpt-jobs quickstart`: the main job, end to end, on this machine.

It goes the way of every study: the same recipes with overrides, submitted to clusters/local.yaml,
recorded as runs. What exists already is not made again, so a second call only shows the results.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from igpt.cli.common import StoreOption, here, out, say, store_of
from igpt.cli.follow import follow, outcome
from igpt.cli.submit import load_job
from igpt.clusters import load_cluster, submit
from igpt.errors import IgptError
from igpt.runs import Run
from igpt.runs.attempts import read_metrics
from igpt.storage import Store

#: Measured on two cores: what a newcomer sees learn in about two minutes (docs/quickstart.md).
STEPS = 2000
MODEL = ("model.layers=4", "model.width=64", "model.heads=4", "model.preset=null")
TRAINING = ("optimizer.learning_rate=3e-3", "batch.global=128")
SHARDS = ("resolution=8", "colors=64", "samples_per_shard=4096")
PROBE = ("budgets=[40, 250, 1000, all]",)


def command(
    store: StoreOption = None,
    folder: Annotated[Path, typer.Option("--folder", help="For the images and the report.")] = Path(
        "quickstart"
    ),
    steps: Annotated[
        int, typer.Option("--steps", min=20, help="Pretraining steps; fewer learn less.")
    ] = STEPS,
) -> None:
    """See the whole study on this machine in a few minutes: digits, shards, pretraining, probes.

    Example: igpt-jobs quickstart --steps 200
    """
    began = time.monotonic()
    root = store_of(store)
    folder = (here() / folder).resolve()
    say(f"The store is {root.uri}, the images and the report are in {folder}.")
    images = folder / "images"
    _step(1, "real handwritten digits, drawn in colours of two photographs")
    from igpt.data.digits import write_digits

    count = write_digits(images)
    say(f"  {count:,} images in {images}")
    _step(2, "a palette, and quantized WebDataset shards")
    shards = _run(root, "jobs", "shard", [f"source=folder:{images}", "output=data/digits", *SHARDS])
    _step(3, "pretraining: each pixel from those before it")
    training = [
        "data=data/digits",
        f"schedule.steps={steps}",
        f"schedule.warmup={min(100, steps // 10)}",
        f"validation.every={max(10, steps // 8)}",
        "validation.samples=512",
        *MODEL,
        *TRAINING,
    ]
    pretraining = _run(root, "jobs", "pretrain", training)
    _step(4, "linear probes of every layer, of the same network untrained, and of raw pixels")
    probe = _run(root, "sweeps", "probe", [f"model={pretraining.id}", *PROBE])
    _step(5, "samples, and completions of half images")
    _run(root, "jobs", "generate", [f"model={pretraining.id}"])
    _step(6, "the report")
    from igpt.report import write_report

    page = write_report(pretraining, folder / "report.html")
    summary = _summary(shards, pretraining, probe, page)
    _show(probe, summary)
    out(json.dumps(summary | {"seconds": round(time.monotonic() - began, 1)}))


def _step(number: int, title: str) -> None:
    say(f"\n{number}/6  {title}")


def _run(root: Store, noun: str, recipe: str, overrides: list[str]) -> Run:
    """Submits a recipe with overrides and watches it to its end."""
    job, config = load_job(noun, recipe, overrides, here())
    cluster = load_cluster("local", here())
    submission = submit(
        root,
        job,
        config,
        cluster,
        folder=here(),
        arguments=sys.argv,
        name=f"quickstart-{recipe}",
    )
    run = submission.run
    say(f"  {run.id}" + ("" if submission.created else " has been made already"))
    end = follow(run, label="  ")
    if run.result() is None:
        failed = IgptError(outcome(run, end))
        failed.exit_code = end.exit_code
        raise failed
    return run


def _summary(shards: Run, pretraining: Run, probe: Run, page: Path) -> dict[str, Any]:
    """The last line of output."""
    best = {
        selection["subject"]: selection["test_accuracy"]
        for selection in (probe.result() or {})["selections"]
        if selection["budget"] == "all"
    }
    validations = [
        line["validation_loss"]
        for line in read_metrics(pretraining.record)
        if "validation_loss" in line
    ]
    return {
        "probe_accuracy": best["trained"],
        "raw_pixel_accuracy": best["raw pixels"],
        "untrained_accuracy": best["untrained"],
        "validation_nats": validations[-1],
        "palette_entropy_nats": (shards.result() or {})["unigram_entropy"],
        "run": pretraining.id,
        "report": str(page),
    }


def _show(probe: Run, summary: dict[str, Any]) -> None:
    """The table of the probes, by layer."""
