"""The job `features`: one pass over a data set that keeps every layer's pooled features."""

from typing import Literal

from pydantic import Field

from igpt.data.index import SplitName
from igpt.errors import UserError
from igpt.jobs.base import EvaluationConfig, Job, Preparation, Prepared
from igpt.jobs.estimate import (
    Inference,
    Need,
    forward_flops,
    inference_memory,
    readable_bytes,
)
from igpt.jobs.inputs import settle_evaluation
from igpt.jobs.references import open_reference
from igpt.model.config import ModelConfig

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class FeaturesConfig(EvaluationConfig):
    """Configuration of `features`."""

    job: Literal["features"] = "features"
    untrained: bool = Field(default=False, description="the same network with its first weights")
    data: str | None = Field(default=None, description="shards; null: those of the model's run")
    splits: list[SplitName] = Field(default=list(SPLITS), min_length=1)
    batch: int = Field(default=128, ge=1, description="images at once")
    device: Literal["auto", "cpu", "cuda"] = "auto"


def prepare(config: FeaturesConfig, preparation: Preparation) -> Prepared:
    """Settles the model and checks that the data fits it."""
    root = preparation.root
    settled = settle_evaluation(root, config.model, config.data, preparation.folder)
    data, splits = settled.data, settled.index.splits
    absent = [split for split in config.splits if split not in splits]
    if absent:
        raise UserError(
            f"{data} has no split {absent[0]!r}", expected=f"some of {', '.join(splits)}"
        )
    samples = sum(splits[split].samples for split in config.splits)
    uri = open_reference(root, data).uri
    return Prepared(
        config.model_copy(update={"model": settled.model, "data": data}),
        inputs=settled.inputs,
        facts=settled.facts | {"data": f"{uri}: {samples:,} images"},
        need=features_need(settled.shape, samples, config.batch),
    )


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
