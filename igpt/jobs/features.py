"""The job `features`: one pass over a data set that keeps every layer's pooled features."""

from typing import Any, Literal

from pydantic import Field

from igpt.data.index import Index, SplitName
from igpt.errors import DataCorrupt, UserError
from igpt.jobs.base import Job, JobConfig, Preparation, Prepared
from igpt.jobs.estimate import (
    Inference,
    Need,
    forward_flops,
    inference_memory,
    readable_bytes,
)
from igpt.jobs.inputs import check_palette, check_resolution, data_index
from igpt.jobs.references import model_digest, open_reference, settle, settle_model
from igpt.model.config import ModelConfig
from igpt.runs import Run
from igpt.runs.reading import read_json
from igpt.storage import Store

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class FeaturesConfig(JobConfig):
    """Configuration of `features`."""

    job: Literal["features"] = "features"
    model: str = Field(default="latest", description="a run, latest, or a checkpoint's address")
    untrained: bool = Field(default=False, description="the same network with its first weights")
    data: str | None = Field(default=None, description="shards; null: those of the model's run")
    splits: list[SplitName] = Field(default=list(SPLITS), min_length=1)
    batch: int = Field(default=128, ge=1, description="images at once")
    device: Literal["auto", "cpu", "cuda"] = "auto"


def settle_inputs(
    root: Store, model: str, data: str | None, preparation: Preparation
) -> tuple[str, str, Run | None, dict[str, Any]]:
    """Model and data of an evaluation, settled and checked against each other.

    Returns (model, data, the model's run if it has one, digests of both). Shared by the jobs that
    evaluate a model.
    """
    model, run = settle_model(root, model, preparation.folder)
    if data is None:
        if run is None:
            raise UserError(f"model {model} belongs to no run, so data must be named")
        data = str(run.spec().config["data"])
    data = settle(data, preparation.folder)
    index, digest = data_index(root, data)
    if run is not None:
        trained = run.spec().config
        check_resolution(trained["model"]["resolution"], index, data)
        check_palette(trained["palette"], index, data, f"run {run.id}")
    return model, data, run, {"model": model_digest(root, model), "data": digest}


def prepare(config: FeaturesConfig, preparation: Preparation) -> Prepared:
    """Settles the model and checks that the data fits it."""
    root = preparation.root
    model, data, _, inputs = settle_inputs(root, config.model, config.data, preparation)
    index, _ = data_index(root, data)
    absent = [split for split in config.splits if split not in index.splits]
    if absent:
        raise UserError(
            f"{data} has no split {absent[0]!r}", expected=f"some of {', '.join(index.splits)}"
        )
    samples = sum(index.splits[split].samples for split in config.splits)
    return Prepared(
        config.model_copy(update={"model": model, "data": data}),
        inputs=inputs,
        facts={"model": model, "data": f"{open_reference(root, data).uri}: {samples:,} images"},
        need=features_need(model_shape(root, model, index), samples, config.batch),
    )


def model_shape(root: Store, reference: str, index: Index) -> ModelConfig:
    """The shape of a settled model by its config.json, for the images of `index`."""
    folder = open_reference(root, reference)
    config = read_json(folder, "config.json")
    if "model" in config:
        named, names = config["model"], ("layers", "width", "heads")
    else:  # an exported folder; transformers' own defaults stand where it is silent
        named = {"n_layer": 24, "n_embd": 512, "n_head": 8, **config}
        names = ("n_layer", "n_embd", "n_head")
    try:
        layers, width, heads = (int(named[name]) for name in names)
        return ModelConfig(
            layers=layers,
            width=width,
            heads=heads,
            resolution=index.resolution,
            colors=index.colors,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataCorrupt(
            f"{folder.uri}/config.json tells no shape of a network: {error}"
        ) from None


def features_need(shape: ModelConfig, samples: int, batch: int, *, networks: int = 1) -> Need:
    """What it takes to make all layers' features of `samples` images by so many networks."""
    size = networks * shape.feature_bytes(samples)
    of_each = f" x {networks} networks" if networks > 1 else ""
    return Need(
        facts={
            "features": f"{readable_bytes(size)}, unless they are there: {shape.layers + 1} layers "
            f"x {shape.width} x {samples:,} images{of_each}, float16"
        },
        numbers={"images": samples, "layers": shape.layers + 1, "feature_bytes": size},
        inference=Inference(
            inference_memory(shape, cached=False), batch, networks * forward_flops(shape, samples)
        ),
        output_bytes=size,
    )


JOB = Job(
    "features",
    "every layer's features of a data set",
    FeaturesConfig,
    prepare,
    "igpt.jobs.entries.features:run",
)
