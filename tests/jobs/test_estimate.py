"""What a job is said to need is what it takes: counts exactly, memory within a third."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from igpt.jobs.estimate import (
    Memory,
    Training,
    checkpoint_bytes,
    checkpoints_kept,
    inference_memory,
    paper_learning_rate,
    readable_bytes,
    training_memory,
)
from igpt.model.config import ModelConfig
from igpt.storage import Store
from igpt.training.config import TrainingConfig

WIDE = ModelConfig(layers=2, width=768, heads=4, resolution=8, colors=512)  # mostly weights
LONG = ModelConfig(layers=4, width=128, heads=4, resolution=16, colors=64)  # mostly activations


def recipe(**fields: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"schedule": {"steps": 1_000_000}} | fields)


@pytest.mark.parametrize(
    ("preset", "resolution", "parameters"),
    [
        ("igpt-s", 32, 76_571_648),
        ("igpt-m", 32, 455_157_760),
        ("igpt-l", 32, 1_362_250_752),
        ("igpt-l", 48, 1_364_216_832),
        ("igpt-xl", 64, 6_810_875_904),
    ],
)
def test_the_counts_of_the_published_sizes(preset: str, resolution: int, parameters: int) -> None:
    model = ModelConfig.preset(preset, resolution=resolution)
    training = Training(model, recipe(), samples=1_281_167, validation_images=0)
    numbers = training.numbers()
    assert numbers["parameters"] == parameters
    assert numbers["images"] == 128_000_000
    assert numbers["tokens"] == 128_000_000 * resolution**2
    assert numbers["epochs"] == pytest.approx(99.9, abs=0.05)
    assert checkpoint_bytes(model) == 12 * parameters
    assert sum(training_memory(model, "float32", compiled=True).fixed.values()) == 16 * parameters


def test_the_operations_of_the_smallest_are_those_of_its_source() -> None:
    model = ModelConfig.preset("igpt-s", resolution=32)
    training = Training(model, recipe(), samples=1_281_167, validation_images=0)
    assert training.flops == pytest.approx(7.94e19, rel=5e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("kind", "shape", "images"),
    [
        ("float32", WIDE, 2),
        ("float32", LONG, 16),
        ("bfloat16", LONG, 16),
        ("features", LONG, 64),
    ],
)
def test_the_memory_is_that_of_a_real_step(kind: str, shape: ModelConfig, images: int) -> None:
    if kind == "features":
        memory = inference_memory(shape, cached=False)
    else:
        memory = training_memory(shape, kind, compiled=False)  # type: ignore[arg-type]
    script = Path(__file__).with_name("memory_of_a_step.py")
    sizes = (shape.layers, shape.width, shape.heads, shape.resolution, shape.colors, images)
    ended = subprocess.run(
        [sys.executable, str(script), kind, *map(str, sizes)],
        # What is freed goes back to the system at once, so that the peak is that of the tensors.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert memory.of(images) == pytest.approx(int(ended.stdout), rel=0.3)


def test_more_images_at_once_take_more_memory_until_the_device_is_full() -> None:
    memory = Memory({"weights": 100}, per_image=30)
    assert memory.of(3) == 190
    assert memory.most_images(190) == 3
    assert memory.most_images(189) == 2
    assert memory.most_images(129) == 0
    assert memory.most_images(50) == 0


def test_drawing_keeps_the_keys_and_values_of_all_blocks() -> None:
    import torch

    from igpt.model.transformer import ImageGPT

    _, cache = ImageGPT(LONG).prefill(torch.zeros((3, 5), dtype=torch.int64))
    kept = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    with_cache, without = inference_memory(LONG, cached=True), inference_memory(LONG, cached=False)
    assert 3 * (with_cache.per_image - without.per_image) == kept


def test_a_checkpoint_has_the_bytes_it_is_said_to_have(store: Store) -> None:
    import torch

    from igpt.model.transformer import ImageGPT
    from igpt.training.checkpoint import capture, save_checkpoint
    from igpt.training.step import Worker

    worker = Worker(ImageGPT(LONG), recipe(), world_size=1, device=torch.device("cpu"))
    saved = save_checkpoint(store, capture(1, worker.model, worker.optimizer, {}), 1, lambda: False)
    assert 0 <= saved.bytes - checkpoint_bytes(LONG) < 32_000  # names, shapes, digests


@pytest.mark.parametrize(
    ("steps", "settings", "kept"),
    [
        (1_000_000, {}, (2, 4)),  # the last milestone is the end, one of the newest
        (1_000_001, {}, (2, 5)),
        (65_536, {"keep": 5}, (5, 0)),
        (100_000, {"milestones": (10, 10, 20)}, (2, 2)),
    ],
)
def test_milestones_are_kept_beside_the_newest(
    steps: int, settings: dict[str, object], kept: tuple[int, int]
) -> None:
    fields = {"schedule": {"steps": steps}, "checkpoints": settings}
    assert checkpoints_kept(TrainingConfig.model_validate(fields)) == kept


def test_validation_takes_a_third_of_the_time_of_training_on_as_much() -> None:
    config = recipe(schedule={"steps": 1000}, batch={"global": 10}, validation={"every": 100})
    training = Training(LONG, config, samples=500, validation_images=300)
    assert training.tokens == 10_000 * 256
    assert training.paced_tokens == (10_000 + 10 * 300 / 3) * 256


def test_the_papers_rate_is_known_for_the_sizes_it_was_published_for() -> None:
    assert paper_learning_rate(ModelConfig.preset("igpt-l", resolution=32)) == ("igpt-l", 0.001)
    assert paper_learning_rate(ModelConfig.preset("igpt-xl", resolution=64)) == ("igpt-xl", 0.0003)
    assert paper_learning_rate(ModelConfig.preset("igpt-s", resolution=64)) is None
    assert paper_learning_rate(LONG) is None


def test_bytes_are_written_for_people() -> None:
    sizes = [512_000, 1_500_000, 16_347_000_000, 2_100_000_000_000]
    assert [readable_bytes(size) for size in sizes] == ["512 kB", "1.5 MB", "16.3 GB", "2.1 TB"]
