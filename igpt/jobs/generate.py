"""The job `generate`: samples from nothing, and completions of half images."""

from typing import Literal

from pydantic import Field

from igpt.jobs.base import Job, JobConfig, Preparation, Prepared
from igpt.jobs.estimate import Inference, Need, inference_memory
from igpt.jobs.features import model_shape, settle_inputs
from igpt.jobs.inputs import data_index


class GenerateConfig(JobConfig):
    """Configuration of `generate`."""

    job: Literal["generate"] = "generate"
    model: str = Field(default="latest", description="a run, latest, or a checkpoint's address")
    data: str | None = Field(default=None, description="images to complete; null: the model's own")
    split: Literal["train", "validation", "test"] = "test"
    samples: int = Field(default=64, ge=0, description="images drawn from nothing")
    completions: int = Field(default=8, ge=0, description="images whose top half is completed")
    completions_each: int = Field(default=4, ge=1, description="different completions of each")
    temperature: float = Field(default=1.0, ge=0)
    seed: int = Field(default=0, ge=0)
    batch: int = Field(default=64, ge=1, description="images drawn at once")
    device: Literal["auto", "cpu", "cuda"] = "auto"


def prepare(config: GenerateConfig, preparation: Preparation) -> Prepared:
    """Settles the model and checks that the data fits it."""
    root = preparation.root
    model, data, _, inputs = settle_inputs(root, config.model, config.data, preparation)
    index, _ = data_index(root, data)
    drawn = config.samples + config.completions * config.completions_each
    memory = inference_memory(model_shape(root, model, index), cached=True)
    at_once = min(config.batch, max(config.samples, config.completions))
    return Prepared(
        config.model_copy(update={"model": model, "data": data}),
        inputs=inputs,
        facts={
            "model": model,
            "draws": f"{config.samples} samples, "
            f"{config.completions} x {config.completions_each} completions",
        },
        need=Need(numbers={"images": drawn}, inference=Inference(memory, at_once)),
    )


JOB = Job(
    "generate",
    "samples and half-image completions",
    GenerateConfig,
    prepare,
    "igpt.jobs.entries.generate:run",
)
