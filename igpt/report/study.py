"""The report of a pretraining run: from its record, and those of the probes and samples of it.

This is the one module of the room that knows runs and stores; the rest draws what it is given.
"""

import dataclasses
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igpt.data import Dataset, Palette, open_dataset
from igpt.errors import NotFound, Unreachable, UserError
from igpt.evaluation import rows_from_json
from igpt.jobs.estimate import counted
from igpt.jobs.inputs import data_index
from igpt.jobs.references import open_reference
from igpt.report.content import (
    Attempt,
    Completion,
    Headline,
    ImageGrid,
    ProbeRow,
    ProbeSelection,
    ProbeTable,
    Report,
    TrainingCurve,
)
from igpt.report.numbers import percent
from igpt.report.page import render
from igpt.report.protocol import protocol
from igpt.report.summary import known
from igpt.report.tables import probe_csv, training_csv
from igpt.runs import Run, Spec
from igpt.runs import events as ev
from igpt.runs.attempts import read_metrics
from igpt.runs.listing import finished_runs
from igpt.runs.reading import read_json

_EXAMPLES = 32


def write_report(run: Run, path: Path) -> Path:
    """Writes the page, and beside it the probe's rows and the losses as CSV; returns the page."""
    try:
        probe, training = (path.with_suffix(f".{name}.csv") for name in ("probe", "training"))
    except ValueError as error:  # it has no name, as `/`
        raise _unwritable(path, error) from None
    report = collect(run)
    files = {path: render(report)}
    if report.probes:
        files[probe] = probe_csv(report.probes)
    if report.training:
        files[training] = training_csv(report.training)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for place, text in files.items():
            place.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None
    return path


def _unwritable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"the report cannot be written to {path}: {error}", expected="a name such as study.html"
    )


def collect(run: Run) -> Report:
    """Everything the page shows of a pretraining run. Raises UserError for a run of another job."""
    spec = run.spec()
    if spec.job != "pretrain":
        raise UserError(
            f"run {run.id} is of the job {spec.job}",
            expected="a pretraining run; its probes and samples are found by themselves",
        )
    data = open_dataset(open_reference(run.root, spec.config["data"]))
    related = _related(run)
    probe, generate = related.get("probe"), related.get("generate")
    curve = _curve(run, data)
    probed = _other_data(probe, spec) if probe else ""
    table = probe_table(probe, _classes(probe), probed) if probe else None
    completions = _completions(generate, data.palette(), data) if generate else ()
    return Report(
        title=f"Image GPT: {run.id}",
        made=datetime.now(UTC),
        runs=(run.id, *(one.id for one in related.values())),
        summary=_summary(spec, data),
        headlines=_headlines(curve, table),
        probes=table,
        training=curve,
        samples=_samples(generate, data.palette(), data) if generate else None,
        completions=completions,
        examples=_examples(data),
        protocol=protocol(probed, _completed(generate, spec) if generate and completions else ""),
        provenance=_provenance(run, spec),
        attempts=tuple(_attempts(run)),
    )


def _related(run: Run) -> dict[str, Run]:
    """The newest finished probe and generation of the run's checkpoints, by job."""
    found: dict[str, Run] = {}
    for other in finished_runs(run.root):
        try:
            spec = other.spec()
        except NotFound:  # deleted since
            continue
        if str(spec.config.get("model", "")).startswith(f"runs/{run.id}/"):
            found.setdefault(spec.job, other)
    return {job: found[job] for job in ("probe", "generate") if job in found}


def _curve(run: Run, data: Dataset) -> TrainingCurve:
    lines = read_metrics(run.record)
    return TrainingCurve(
        training=tuple((line["step"], line["loss"]) for line in lines if "loss" in line),
        validation=tuple(
            (line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line
        ),
        colors=data.index.colors,
        palette_entropy=data.index.unigram_entropy() if "validation" in data.index.splits else None,
    )


def _other_data(other: Run, pretraining: Spec) -> str:
    """The data of a run that evaluates the model, where it is not what it was pretrained on."""
    spec = other.spec()
    same = spec.inputs["data"] == pretraining.inputs["data"]
    return "" if same else str(spec.config["data"])


def _classes(probe: Run) -> int | None:
    """How many classes the probe's data has; None where that data is no longer to be found."""
    spec = probe.spec()
    try:
        index, digest = data_index(probe.root, spec.config["data"])
    except (NotFound, Unreachable):
        return None
    return len(index.classes) if digest == spec.inputs["data"] else None


def _completed(generate: Run, pretraining: Spec) -> str:
    """Whose images were completed, in words."""
    data = _other_data(generate, pretraining)
    return f"the {generate.spec().config['split']} split" + (f" of {data}" if data else "")


def probe_table(probe: Run, classes: int | None = None, data: str = "") -> ProbeTable:
    """The fits and choices of a finished probe; `classes` and `data` as the table has them."""
    rows = rows_from_json(probe.record.get("probe/rows.json"))
    return ProbeTable(
        rows=tuple(
            ProbeRow(
                **row.model_dump(include=_names(ProbeRow) - {"layer"}),
                layer=_layer(row.subject, row.layer),
            )
            for row in rows
        ),
        selections=tuple(
            ProbeSelection(
                subject=one["subject"],
                budget=one["budget"],
                layer=_layer(one["subject"], one["layer"]),
                l2=one["l2"],
                test_accuracy_mean=one["test_accuracy"],
                test_accuracy_std=one["test_std"],
                seeds=one["seeds"],
                chosen=one["chosen"],
            )
            for one in (probe.result() or {})["selections"]
        ),
        classes=classes,
        data=data,
    )


def _layer(subject: str, layer: int) -> int | None:
    """Raw pixels are one trial, number 0, and no layer of anything."""
    return None if subject == "raw pixels" else layer


def _names(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _headlines(curve: TrainingCurve, table: ProbeTable | None) -> tuple[Headline, ...]:
    headlines = []
    for one in table.selections if table else ():
        if one.budget == "all" and known(one.test_accuracy_mean) is not None:
            note = "no network" if one.layer is None else f"layer {one.layer}"
            headlines.append(
                Headline(f"Probe, {one.subject}", f"{percent(one.test_accuracy_mean)} %", note)
            )
    if curve.validation:
        entropy = curve.palette_entropy
        beside = f", palette's entropy {entropy:.3f}" if entropy is not None else ""
        loss = known(curve.validation[-1][1])
        value = "not a number" if loss is None else f"{loss:.3f}"
        headlines.append(Headline("Validation loss", value, f"nats per token{beside}"))
    return tuple(headlines)


def _summary(spec: Spec, data: Dataset) -> str:
    model, index = spec.config["model"], data.index
    return (
        f"An Image GPT of {counted(model['layers'], 'layer')} and width {model['width']}, "
        f"pretrained for {counted(spec.config['schedule']['steps'], 'step')} of "
        f"{counted(spec.config['batch']['global'], 'image')} of "
        f"{index.resolution}x{index.resolution} in {index.colors} colours, "
        f"{data.samples('train'):,} of them in all."
    )


def _samples(generate: Run, palette: Palette, data: Dataset) -> ImageGrid | None:
    if not generate.record.exists("samples/samples.npy"):
        return None
    config = generate.spec().config
    return ImageGrid(
        palette.decode(_tokens(generate, "samples"), size=data.index.resolution),
        caption=f"Drawn at temperature {config['temperature']:g}, none left out.",
    )


def _completions(generate: Run, palette: Palette, data: Dataset) -> tuple[Completion, ...]:
    if not generate.record.exists("samples/completions.npy"):
        return ()
    size = data.index.resolution
    originals = palette.decode(_tokens(generate, "originals"), size=size)
    hidden = (np.arange(size * size) >= size * size // 2).reshape(size, size)
    return tuple(
        Completion(original, hidden, palette.decode(drawn, size=size))
        for original, drawn in zip(originals, _tokens(generate, "completions"), strict=True)
    )


def _tokens(generate: Run, name: str) -> NDArray[np.uint16]:
    content = io.BytesIO(generate.record.get(f"samples/{name}.npy"))
    tokens: NDArray[np.uint16] = np.load(content, allow_pickle=False)
    return tokens


def _examples(data: Dataset) -> ImageGrid:
    count = min(_EXAMPLES, data.samples("train"))
    tokens, labels = data.read("train", np.arange(count))
    classes = data.index.classes
    return ImageGrid(
        data.palette().decode(tokens, size=data.index.resolution),
        names=tuple(classes[label] if label >= 0 else "" for label in labels) if classes else (),
        caption="The first images of the training split, as the network sees them.",
    )


def _attempts(run: Run) -> Sequence[Attempt]:
    """The attempts, each with what became of it."""
    history = run.events()
    result = run.result()
    attempts = []
    for claim in run.claims():
        own = [event for event in history if event.attempt == claim.attempt]
        ends = [event for event in own if event.kind in _ENDS]
        last = ends[-1] if ends else None
        saved = [event.fields["step"] for event in own if event.kind == ev.CHECKPOINTED]
        finished = result is not None and result["attempt"] == claim.attempt
        outcome = ev.FINISHED if finished else last.kind if last else "ended without a word"
        attempts.append(
            Attempt(
                number=claim.attempt,
                cluster=f"{counted(claim.workers, 'worker')} on {claim.host}",
                outcome=outcome,
                started=datetime.fromtimestamp(claim.time, UTC),
                ended=datetime.fromtimestamp(last.time, UTC) if last else None,
                first_step=claim.start_step + 1,
                last_step=max(saved, default=None),
                detail=str(last.fields.get("reason", "")) if last else "",
            )
        )
    return attempts


_ENDS = (ev.FINISHED, ev.FAILED, ev.PREEMPTED, ev.CANCELLED, ev.SUPERSEDED)


def _provenance(run: Run, spec: Spec) -> dict[str, object]:
    try:
        made = read_json(run.record, "provenance.json")
    except NotFound:  # its client died before it could say
        return {"run": run.uri, "inputs": spec.inputs, "configuration": spec.config}
    made["time"] = datetime.fromtimestamp(made["time"], UTC).isoformat(timespec="seconds")
    git = made.pop("git", None) or {}
    made["git"] = {"commit": git.get("commit"), "changed": bool(git.get("diff"))} if git else None
    return {"run": run.uri, **made, "inputs": spec.inputs, "configuration": spec.config}
