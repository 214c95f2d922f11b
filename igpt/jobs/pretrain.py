"""The job `pretrain`: one Image GPT, trained on shards, saved in checkpoints."""

from typing import Literal, Self

from pydantic import Field, model_validator

from igpt.config import Strict, nearest
from igpt.data import Index
from igpt.errors import UserError
from igpt.jobs.base import Job, JobConfig, Preparation, Prepared
from igpt.jobs.estimate import Need, Training, counted
from igpt.jobs.inputs import check_palette, check_resolution, check_rows, data_index
from igpt.jobs.references import settle
from igpt.model.config import PRESETS, ModelConfig
from igpt.training.config import TrainingConfig
from igpt.training.schedule import warmup_steps


class ModelChoice(Strict):
    """A published size, or a shape of one's own."""

    preset: str | None = Field(default=None, description=f"one of {', '.join(PRESETS)}")
    layers: int | None = Field(default=None, gt=0)
    width: int | None = Field(default=None, gt=0)
    heads: int | None = Field(default=None, gt=0)
    resolution: int | None = Field(default=None, gt=0, description="null: that of the shards")
    colors: int | None = Field(default=None, gt=1, description="null: those of the palette")

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        shape = (self.layers, self.width, self.heads)
        if self.preset is None and None in shape:
            raise ValueError("name a preset, or all of layers, width and heads")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(
                f"{self.preset!r} is not a preset{nearest(self.preset, PRESETS)}; "
                f"one of {', '.join(PRESETS)}"
            )
        _, width, heads = self._shape()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        return self

    def _shape(self) -> tuple[int, int, int]:
        """Layers, width and heads; single values outweigh a preset."""
        layers, width, heads = PRESETS[self.preset] if self.preset else (0, 0, 0)
        return self.layers or layers, self.width or width, self.heads or heads

    def build(self, *, resolution: int, colors: int) -> ModelConfig:
        """The shape at the resolution and palette of the data."""
        layers, width, heads = self._shape()
        return ModelConfig(
            layers=layers, width=width, heads=heads, resolution=resolution, colors=colors
        )


class PretrainConfig(JobConfig, TrainingConfig):
    """Configuration of `pretrain`: what to train, on what, and the recipe of igpt.training."""

    job: Literal["pretrain"] = "pretrain"
    data: str = Field(description="shards; data/NAME is inside the store")
    palette: str | None = Field(default=None, description="digest the shards must have; null: any")
    model: ModelChoice
    device: Literal["auto", "cpu", "cuda"] = "auto"


def prepare(config: PretrainConfig, preparation: Preparation) -> Prepared:
    """Reads the shards' index and checks that model, palette and workers fit it."""
    data = settle(config.data, preparation.folder)
    index, digest = data_index(preparation.root, data)
    check_resolution(config.model.resolution, index, data)
    check_palette(config.palette, index, data, "the recipe")
    if config.model.colors not in (None, index.colors):
        raise UserError(
            f"the model has {config.model.colors} colours, the palette of {data} {index.colors}",
            expected="the same, or null",
        )
    check_rows(config.batch.global_, preparation.workers, "a batch")
    shape = config.model.build(resolution=index.resolution, colors=index.colors)
    model = ModelChoice(
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        resolution=shape.resolution,
        colors=shape.colors,
    )
    settled = config.model_copy(
        update={"data": data, "model": model, "palette": index.palette_digest}
    )
    steps, batch = config.schedule.steps, config.batch.global_
    samples = index.split("train").samples
    warmup_steps(config.schedule, samples=samples, global_batch=batch)
    training = Training(shape, settled, samples, _validation_images(settled, index), config.device)
    return Prepared(
        settled,
        inputs={"data": digest},
        facts={
            "model": f"{counted(shape.layers, 'layer')} x {shape.width}, "
            f"{shape.parameters():,} parameters",
            "data": f"{data}: {samples:,} images of {shape.resolution}x{shape.resolution}",
            "work": f"{counted(steps, 'step')} of {counted(batch, 'image')} = "
            f"{training.images:,} images, {training.images / samples:,.1f} epochs, "
            f"{training.tokens:,} tokens, {training.flops:.2g} FLOPs",
        },
        need=Need(training=training),
    )


def _validation_images(config: PretrainConfig, index: Index) -> int:
    """The images of one validation; none where the data holds none out."""
    wanted = config.validation.samples
    available = index.splits["validation"].samples if "validation" in index.splits else 0
    return available if wanted == "all" else min(wanted, available)


JOB = Job(
    "pretrain", "train an Image GPT", PretrainConfig, prepare, "igpt.jobs.entries.pretrain:run"
)
