"""What several jobs check of their inputs at submission: the data set, the model, and their fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from igpt.data import Index, Palette
from igpt.data.index import load_index
from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.jobs.estimate import counted
from igpt.jobs.references import (
    model_digest,
    no_model,
    open_reference,
    settle,
    settle_model,
)
from igpt.model.config import ModelConfig
from igpt.model.huggingface import read_config
from igpt.runs import Run
from igpt.runs.reading import read_json
from igpt.storage import Store

_PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Evaluation:
    """A model and the data that it is evaluated on, settled and held against each other."""

    model: str
    data: str
    run: Run | None  # the model's, where it has one
    shape: ModelConfig  # of the model's network
    index: Index  # of the data
    inputs: dict[str, Any]  # digests of both
    facts: dict[str, str]  # what the user wants to see beforehand


def settle_evaluation(root: Store, model: str, data: str | None, folder: Path) -> Evaluation:
    """Model and data of a job that evaluates a model; relative paths begin in `folder`.

    data: a reference, or None for that of the model's run. Raises NotFound where one is not there,
    and UserError where the images are of another resolution or palette than the model's.
    """
    model, run = settle_model(root, model, folder)
    if data is None:
        if run is None:
            raise UserError(
                f"model {model} belongs to no run, so data must be named", mend="data=data/NAME"
            )
        data = str(run.spec().config["data"])
    data = settle(data, folder)
    index, digest = data_index(root, data)
    shape, palette = read_model(root, model)
    by = f"run {run.id}" if run else f"model {model}"
    check_resolution(shape.resolution, index, data)
    check_palette(palette, index, data, by)
    if shape.colors != index.colors:
        raise UserError(
            f"{by} has {shape.colors} colours, the palette of {data} {index.colors}",
            expected="the palette that the model was trained with",
        )
    facts = {"model": model + (f" of run {run.id}" if run else "")}
    if palette is None:
        facts["palette"] = f"not checked, as the model records none; it is taken for that of {data}"
    inputs = {"model": model_digest(root, model), "data": digest}
    return Evaluation(model, data, run, shape, index, inputs, facts)


def read_model(root: Store, reference: str) -> tuple[ModelConfig, str | None]:
    """The shape of a settled model's network, and the digest of its palette, None if not recorded.

    Read from `config.json`, and of an exported folder from `preprocessor_config.json`. Raises
    NotFound where there is no model, UserError and DataCorrupt where the files describe none.
    """
    folder = open_reference(root, reference)
    try:
        config = read_json(folder, "config.json")
    except NotFound:
        raise no_model(folder) from None
    if config.get("model_type") == "imagegpt":
        return read_config(config, f"{folder.uri}/config.json"), _exported_palette(folder)
    try:
        shape = ModelConfig.model_validate(config.get("model"))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataCorrupt(
            f"{folder.uri}/config.json tells no shape of a network: {first['msg']}"
        ) from None
    palette = config.get("palette")
    return shape, None if palette is None else str(palette)


def _exported_palette(folder: Store) -> str | None:
    try:
        content = folder.get(_PROCESSOR)
    except NotFound:
        return None
    if read_json(folder, _PROCESSOR).get("clusters") is None:
        return None
    return Palette.from_bytes(content, f"{folder.uri}/{_PROCESSOR}").digest


def data_index(root: Store, reference: str) -> tuple[Index, str]:
    """The index of a settled data reference, and its digest."""
    return load_index(open_reference(root, reference))


def check_resolution(wanted: int | None, index: Index, data: str) -> None:
    """Raises UserError where the shards have another resolution than is asked for."""
    if wanted is not None and wanted != index.resolution:
        raise UserError(
            f"the model takes {wanted}x{wanted} images; {data} holds "
            f"{index.resolution}x{index.resolution}",
            expected=f"resolution {index.resolution}",
            mend="Choose other shards, or write these again with: igpt-jobs submit shard "
            f"resolution={wanted}",
        )


def check_palette(wanted: str | None, index: Index, data: str, by: str) -> None:
    """Raises UserError where the shards were quantized with another palette."""
    if wanted is not None and not index.palette_digest.startswith(wanted):
        raise UserError(
            f"{data} was quantized with palette {index.palette_digest[:12]}, "
            f"and {by} has {wanted[:12]}",
            expected="the same palette: tokens of another one are other colours",
            mend=f"Write the shards again with the palette of {by}",
        )


def check_rows(rows: int, workers: int, what: str) -> None:
    """Raises UserError where some worker would have no row of a batch."""
    if workers > rows:
        raise UserError(
            f"{workers} workers cannot share {what} of {rows} rows",
            expected=f"at most {counted(rows, 'worker')}",
            mend="Lower `workers` in the cluster file, or raise batch.global",
        )
