"""The recipe is the paper's by default, is checked when read, and survives being written."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from igpt.config import dump_yaml, load
from igpt.errors import UserError
from igpt.training.config import TrainingConfig

SHORTEST = "schedule:\n  steps: 100\n"


def test_the_defaults_are_the_papers() -> None:
    config = load(TrainingConfig, SHORTEST, "test")
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2) == (0.9, 0.95)
    assert (optimizer.weight_decay, optimizer.clip) == (0.0, None)
    assert config.schedule.warmup is None
    assert config.batch.global_ == 128
    assert config.precision == "float32"
    assert config.checkpoints.milestones == (65_536, 131_072, 262_144, 524_288, 1_000_000)


def test_the_global_batch_is_written_as_it_is_read() -> None:
    config = load(TrainingConfig, SHORTEST, "test", ["batch.global=24", "batch.micro=3"])
    assert (config.batch.global_, config.batch.micro) == (24, 3)
    assert "global: 24" in dump_yaml(config)
    assert load(TrainingConfig, dump_yaml(config), "again") == config
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=0", "greater than 0"),
        ("optimizer.beta2=1", "less than 1"),
        ("optimizer.clip=-1", "greater than 0"),
        ("objective=bert", "autoregressive"),
        ("precision=float16", "bfloat16"),
        ("batch.micro=0", "greater than 0"),
        ("batch.globl=2", 'did you mean "global"'),
        ("schedule.warmup=101", "warmup 101 is longer than the run, 100 steps"),
        ("checkpoints.keep=0", "greater than or equal to 1"),
        ("validation.samples=most", "all"),
        ("sync_every=2.5", "integer"),
    ],
)
def test_a_wrong_value_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(TrainingConfig, SHORTEST, "test", [override])


def test_a_configuration_is_frozen() -> None:
    config = load(TrainingConfig, SHORTEST, "test")
    with pytest.raises(ValidationError, match="frozen"):
        config.sync_every = 3  # type: ignore[misc]


def test_every_field_is_described() -> None:
    def undescribed(model: type, path: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            if not field.description:
                found.append(f"{path}{name}")
            if hasattr(field.annotation, "model_fields"):
                found += undescribed(field.annotation, f"{path}{name}.")
        return found

    assert undescribed(TrainingConfig, "") == []


def test_what_a_dry_run_needs_imports_no_torch() -> None:
    modules = "igpt.training.config, igpt.training.schedule, igpt.training.throughput"
    code = f"import sys, {modules}, igpt.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
