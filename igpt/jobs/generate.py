"""The job `generate`: samples from nothing, and completions of half images."""

from typing import Literal, Self

from pydantic import Field, model_validator

from igpt.data.index import Index, SplitName
from igpt.errors import UserError
from igpt.jobs.base import EvaluationConfig, Job, Preparation, Prepared
from igpt.jobs.estimate import Inference, Need, counted, inference_memory
from igpt.jobs.inputs import settle_evaluation

#: Whose images are completed where the recipe does not say, the first that there is.
_PREFERRED: tuple[SplitName, ...] = ("test", "validation", "train")


class GenerateConfig(EvaluationConfig):
    """Configuration of `generate`."""

    job: Literal["generate"] = "generate"
    data: str | None = Field(default=None, description="images to complete; null: the model's own")
    split: SplitName | None = Field(
        default=None, description="whose images; null: test, or else validation, or else train"
    )
    samples: int = Field(default=64, ge=0, description="images drawn from nothing")
    completions: int = Field(default=8, ge=0, description="images whose top half is completed")
    completions_each: int = Field(default=4, ge=1, description="different completions of each")
    temperature: float = Field(default=1.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    batch: int = Field(default=64, ge=1, description="images drawn at once")
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.samples and not self.completions:
            raise ValueError("samples and completions are both 0: there is nothing to draw")
        return self


def prepare(config: GenerateConfig, preparation: Preparation) -> Prepared:
    """Settles model and split, and checks that the data fits the model."""
    settled = settle_evaluation(preparation.root, config.model, config.data, preparation.folder)
    split = _split(config, settled.index, settled.data)
    if split is not None and config.completions:
        _check_images(config, settled.index, split, settled.data)
    drawn = config.samples + config.completions * config.completions_each
    at_once = min(config.batch, max(config.samples, config.completions))
    completions = f"{config.completions} x {config.completions_each} completions"
    return Prepared(
        config.model_copy(update={"model": settled.model, "data": settled.data, "split": split}),
        inputs=settled.inputs,
        facts=settled.facts
        | {
            "draws": f"{counted(config.samples, 'sample')}, {completions}"
            + (f" of {split} images" if config.completions else "")
        },
        need=Need(
            numbers={"images": drawn},
            inference=Inference(inference_memory(settled.shape, cached=True), at_once),
        ),
    )


def _split(config: GenerateConfig, index: Index, data: str) -> SplitName | None:
    """The split whose images are completed. Raises UserError for one that the data has not."""
    if not config.completions:
        return config.split
    if config.split is None:
        return next(split for split in _PREFERRED if split in index.splits)
    if config.split not in index.splits:
        raise UserError(
            f"{data} has no split {config.split!r} whose images could be completed",
            expected=f"one of {', '.join(index.splits)}",
            mend=f"Try split={next(split for split in _PREFERRED if split in index.splits)}, or "
            "completions=0",
        )
    return config.split


def _check_images(config: GenerateConfig, index: Index, split: SplitName, data: str) -> None:
    """Raises UserError where more images are to be completed than there are."""
    there = index.splits[split].samples
    if config.completions > there:
        raise UserError(
            f"{data} has {counted(there, f'{split} image')}, of which {config.completions} cannot "
            "be completed",
            expected=f"completions of at most {there}",
            mend="completions_each is how many different ones each image gets",
        )


JOB = Job(
    "generate",
    "samples and half-image completions",
    GenerateConfig,
    prepare,
    "igpt.jobs.entries.generate:run",
)
