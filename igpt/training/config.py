"""How a network is trained: the paper's recipe as defaults (appendix, tables 4 and 5), no torch.

Every value is checked when it is read, so that a wrong one costs no GPU-second.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from igpt.config import Strict

#: Tokens that go through the network at once on a processor, where no memory limit shows itself.
TOKENS_ON_CPU = 16_384

Positive = Annotated[int, Field(gt=0)]


class OptimizerConfig(Strict):
    """Adam, with the paper's coefficients."""

    learning_rate: float = Field(default=0.003, gt=0, description="the highest, after warm-up")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the gradient's mean")
    beta2: float = Field(
        default=0.95, ge=0, lt=1, description="decay of its square; 0.999 causes loss spikes"
    )
    epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the square")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled decay of all weights (AdamW); the paper's is 0"
    )
    clip: float | None = Field(
        default=None, gt=0, description="largest norm of the gradient; the paper does not clip"
    )


class ScheduleConfig(Strict):
    """Linear warm-up, then a cosine to 0."""

    steps: int = Field(gt=0, description="optimizer steps of the whole run; the paper's 1,000,000")
    warmup: int | None = Field(
        default=None, ge=0, description="steps of linear warm-up; null = one epoch, the paper's"
    )

    @model_validator(mode="after")
    def _warmup_ends(self) -> "ScheduleConfig":
        if self.warmup is not None and self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup} is longer than the run, {self.steps} steps")
        return self


class BatchConfig(Strict):
    """How many images make one step. Written `global` in YAML, a word that Python keeps."""

    global_: int = Field(
        default=128, gt=0, alias="global", description="images of one step, over all workers"
    )
    micro: Positive | Literal["auto"] = Field(
        default="auto",
        description="most images that go through the network at once on one worker; auto finds it",
    )

    @model_serializer
    def _by_alias(self) -> dict[str, Any]:
        """What is written can be read again, whoever writes it."""
        return {"global": self.global_, "micro": self.micro}


class ValidationConfig(Strict):
    """The loss on images that are never trained on."""

    every: int = Field(default=1000, gt=0, description="steps from one validation to the next")
    samples: Positive | Literal["all"] = Field(
        default=4096, description="the first so many images of the validation split"
    )


class CheckpointConfig(Strict):
    """When the run is saved, and what is kept."""

    every_steps: int | None = Field(
        default=None, gt=0, description="save after each so many steps; null = by time alone"
    )
    every_minutes: float | None = Field(
        default=15.0, gt=0, description="save after so many minutes; null = by steps alone"
    )
    keep: int = Field(default=2, ge=1, description="newest checkpoints that are kept")
    milestones: tuple[Positive, ...] = Field(
        default=(65_536, 131_072, 262_144, 524_288, 1_000_000),
        description="steps that are always saved and never dropped; the paper's figure 3",
    )


class TrainingConfig(Strict):
    """Everything about training that is not the network, the data or the machine."""

    objective: Literal["autoregressive"] = Field(
        default="autoregressive", description="what is predicted: each pixel from those before it"
    )
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="Adam's settings")
    schedule: ScheduleConfig = Field(description="the length of the run, and its warm-up")
    batch: BatchConfig = Field(default=BatchConfig(), description="images a step")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="the paper's float32, or bfloat16 autocast for speed"
    )
    compile: bool | Literal["auto"] = Field(
        default="auto", description="torch.compile; auto = on a GPU only"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="the order of the data")
    validation: ValidationConfig = Field(
        default=ValidationConfig(), description="when and on what the validation loss is measured"
    )
    checkpoints: CheckpointConfig = Field(
        default=CheckpointConfig(), description="when the run is saved"
    )
    sync_every: int = Field(
        default=10,
        gt=0,
        description="steps between two agreements of the workers: to stop, to save, on the losses",
    )
