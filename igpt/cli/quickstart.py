"""`igpt-jobs quickstart`: the main job, end to end, on this machine.

It goes the way of every study: the same recipes with overrides, submitted to clusters/local.yaml,
recorded as runs. What exists already is not made again, so a second call only shows the results.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from igpt.cli.common import JsonOption, StoreOption, console, here, out, print_json, say, store_of
from igpt.cli.follow import follow, outcome
from igpt.cli.submit import load_job
from igpt.clusters import load_cluster, submit
from igpt.errors import IgptError
from igpt.evaluation import rows_from_json
from igpt.runs import Run
from igpt.storage import Store
from igpt.storage.files import explained

#: Measured on two cores: what a newcomer sees learn in about two minutes (docs/quickstart.md).
STEPS = 1500
MODEL = ("model.preset=null", "model.layers=4", "model.width=64", "model.heads=4")
TRAINING = ("optimizer.learning_rate=4e-3", "batch.global=64")
SHARDS = ("resolution=8", "colors=32", "samples_per_shard=4096")
# A budget of 4000 would be most of the digits there are.
PROBE = ("budgets=[40, 250, 1000, all]", "l2=[1e-2, 1e-3, 1e-4, 1e-5, 1e-6]", "seeds=[1, 2, 3]")


def command(
    store: StoreOption = None,
    folder: Annotated[Path, typer.Option("--folder", help="For the images and the report.")] = Path(
        "quickstart"
    ),
    steps: Annotated[
        int, typer.Option("--steps", min=20, help="Pretraining steps; fewer learn less.")
    ] = STEPS,
    as_json: JsonOption = False,
) -> None:
    """See the whole study on this machine in a few minutes: digits, shards, pretraining, probes.

    Example: igpt-jobs quickstart --steps 200
    """
    began = time.monotonic()
    root = store_of(store)
    folder = (here() / folder).resolve()
    with explained("written", folder):
        folder.mkdir(parents=True, exist_ok=True)
    say(f"The store is {root.uri}, the images and the report are in {folder}.")
    images = folder / "images"
    _step(1, "real handwritten digits, drawn in colours of two photographs")
    from igpt.data.digits import write_digits

    count = write_digits(images)
    say(f"  {count:,} images in {images}")
    _step(2, "a palette, and quantized WebDataset shards")
    _run(root, "jobs", "shard", [f"source=folder:{images}", "output=data/digits", *SHARDS])
    _step(3, "pretraining: each pixel from those before it")
    training = [
        "data=data/digits",
        f"schedule.steps={steps}",
        f"schedule.warmup={steps // 20}",
        f"validation.every={max(10, steps // 8)}",
        "validation.samples=512",
        *MODEL,
        *TRAINING,
    ]
    pretraining = _run(root, "jobs", "pretrain", training, workers=min(2, os.cpu_count() or 1))
    _step(4, "linear probes of every layer, of the same network untrained, and of raw pixels")
    probe = _run(root, "sweeps", "probe", [f"model={pretraining.id}", *PROBE])
    _step(5, "samples, and completions of half images")
    _run(root, "jobs", "generate", [f"model={pretraining.id}"])
    _step(6, "the report")
    from igpt.report.study import write_report

    page = write_report(pretraining, folder / "report.html")
    summary = _summary(pretraining, probe, page)
    _show(probe, summary)
    summary["seconds"] = round(time.monotonic() - began, 1)
    if as_json:
        print_json(summary)
    else:
        out(json.dumps(summary))


def _step(number: int, title: str) -> None:
    say(f"\n{number}/6  {title}")


def _run(root: Store, noun: str, recipe: str, overrides: list[str], workers: int = 1) -> Run:
    """Submits a recipe with overrides and watches it to its end."""
    job, config = load_job(noun, recipe, overrides, here())
    cluster = load_cluster("local", here(), [f"workers={workers}"])
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


def _summary(pretraining: Run, probe: Run, page: Path) -> dict[str, Any]:
    """The last line of output."""
    best = {
        selection["subject"]: selection["test_accuracy"]
        for selection in (probe.result() or {})["selections"]
        if selection["budget"] == "all"
    }
    return {
        "probe_accuracy": best["trained"],
        "raw_pixel_accuracy": best["raw pixels"],
        "untrained_accuracy": best["untrained"],
        "validation_nats": (pretraining.result() or {})["validation_loss"],
        "palette_entropy_nats": (pretraining.result() or {})["unigram_entropy"],
        "run": pretraining.id,
        "report": str(page),
    }


def _show(probe: Run, summary: dict[str, Any]) -> None:
    """The table of the probes, by layer, and the loss beside what it is to be measured against."""
    rows = rows_from_json(probe.record.get("probe/rows.json"))
    tested = {
        (row.subject, row.layer): row.test_accuracy
        for row in rows
        if row.budget == "all" and row.test_accuracy is not None
    }
    layers = sorted({layer for subject, layer in tested if subject == "trained"})
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("layer", "pretrained", "untrained"):
        table.add_column(title, justify="right")
    for layer in layers:
        name = f"{layer} (ln_f)" if layer == layers[-1] else str(layer)
        table.add_row(
            name, *(f"{100 * tested[one, layer]:.1f}" for one in ("trained", "untrained"))
        )
    screen = console(stderr=True)
    screen.print("\nLinear probe, test accuracy in %, all labels")
    screen.print(table)
    say(f"raw pixels, the same probe without a network: {100 * tested['raw pixels', 0]:.1f}")
    say(
        f"validation loss {summary['validation_nats']:.3f} nats per token; "
        f"a guess from the colours' frequencies alone: {summary['palette_entropy_nats']:.3f}"
    )
    say(
        "Raw pixels do badly because each digit is drawn light on dark and dark on light, "
        "which no linear map undoes; on grey digits they reach about 90 %."
    )
    say(f"The report: {summary['report']}")
