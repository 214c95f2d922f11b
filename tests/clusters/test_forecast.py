"""What a plan says of a need on a cluster, and what it takes from earlier runs."""

import json
from typing import Any

import pytest

from igpt.clusters import status
from igpt.clusters.base import DeviceConfig, Limits
from igpt.clusters.files import cluster_key
from igpt.clusters.local.config import LocalCluster
from igpt.clusters.planning.devices import GIB, device_memory, is_gpu
from igpt.clusters.planning.forecast import Forecast, Known, forecast, reckon
from igpt.clusters.planning.measured import Measured, Measurement, measured
from igpt.config import dump_yaml
from igpt.jobs import Prepared, find_job
from igpt.jobs.base import JobConfig
from igpt.jobs.estimate import Inference, Memory, Need, Training
from igpt.model.config import ModelConfig
from igpt.runs import Run, create_run
from igpt.runs.attempts import Claim, claim
from igpt.storage import Store
from igpt.training.config import TrainingConfig

S = ModelConfig.preset("igpt-s", resolution=32)
H100 = DeviceConfig(name="NVIDIA H100 80GB HBM3")


def training(model: ModelConfig = S, **fields: Any) -> Training:
    config = {"schedule": {"steps": 1_000_000}, "validation": {"every": 1_000_000}} | fields
    return Training(model, TrainingConfig.model_validate(config), 1_281_167, 0)


def known(workers: int = 8, device: DeviceConfig = H100, **fields: Any) -> Known:
    limits = {name: fields.pop(name) for name in ("grace_seconds", "time_limit") if name in fields}
    return Known(
        workers,
        Limits(**{"grace_seconds": 120.0, "device": device} | limits),
        fields.pop("measured", Measured()),
        **fields,
    )


def made(where: Known, **fields: Any) -> Forecast:
    return reckon(Need(training=training(**fields)), where)


# The device


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("NVIDIA H100 80GB HBM3", 80),
        ("H100 NVL", 94),
        ("NVIDIA A100-SXM4-80GB", 80),
        ("A100", 40),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10),
        ("Tesla V100-SXM2-32GB", 32),
        ("NVIDIA GH200 480GB", 96),
        ("L40S", 48),
        ("NVIDIA L4", 24),
        ("rtx 4090", 24),
        ("RTX A3000", None),
        ("NVIDIA Unheard-of 9000", None),
        ("CPU", None),
        (None, None),
    ],
)
def test_the_memory_of_a_device_is_known_by_its_name_or_not_at_all(
    name: str | None, gigabytes: float | None
) -> None:
    size = device_memory(DeviceConfig(name=name))
    assert size == (None if gigabytes is None else gigabytes * GIB)
    assert device_memory(DeviceConfig(name=name, memory_gb=7.5)) == 7.5 * GIB


def test_a_gpu_is_one_that_is_asked_for_or_named() -> None:
    assert is_gpu(H100, "auto") is True
    assert is_gpu(H100, "cpu") is False
    assert is_gpu(DeviceConfig(name="AMD EPYC CPU"), "auto") is False
    assert is_gpu(DeviceConfig(), "auto") is None
    assert is_gpu(DeviceConfig(), "cuda") is True
    assert is_gpu(DeviceConfig(memory_gb=24), "auto") is True


# Memory


def test_auto_takes_all_rows_where_they_fit_and_halves_where_not() -> None:
    all_fit = made(known(8)).numbers
    assert all_fit["images_at_once"] == 16
    assert all_fit["memory_bytes"] < 0.9 * all_fit["device_memory_bytes"]
    one = made(known(1)).numbers
    assert one["images_at_once"] == 64
    assert 64 <= one["most_images_at_once"] < 128
    assert made(known(1)).warnings == []


def test_a_micro_batch_that_does_not_fit_is_warned_of_with_the_largest_that_does() -> None:
    found = made(known(1), batch={"global": 128, "micro": 128})
    most = found.numbers["most_images_at_once"]
    assert any(f"Set batch.micro={most}." in warning for warning in found.warnings)
    assert made(known(1), batch={"global": 128, "micro": most}).warnings == []


def test_a_network_that_no_micro_batch_makes_fit_is_warned_of() -> None:
    found = made(known(64), model=ModelConfig.preset("igpt-xl", resolution=64))
    assert any("more workers do not help" in warning for warning in found.warnings)
    assert found.numbers["most_images_at_once"] == 0


def test_the_memory_of_an_unknown_device_is_said_to_be_unknown() -> None:
    found = made(known(4, DeviceConfig()))
    assert "unknown" in found.facts["memory"]
    assert "device.memory_gb" in found.facts["memory"]
    assert found.numbers["most_images_at_once"] is None
    assert found.numbers["images_at_once"] == 32


def test_a_cpu_takes_as_many_images_at_once_as_training_does() -> None:
    assert made(known(1, DeviceConfig(name="CPU"))).numbers["images_at_once"] == 16


def test_bfloat16_and_compilation_leave_more_room() -> None:
    slow = made(known(8), compile=False).numbers["memory"]["activations"]
    fast = made(known(8)).numbers["memory"]["activations"]
    half = made(known(8), precision="bfloat16").numbers["memory"]["activations"]
    assert slow > fast > half


def test_passes_without_gradients_are_held_against_the_device_too() -> None:
    inference = Inference(Memory({"weights": 10 * GIB}, GIB), batch=128)
    found = reckon(Need(inference=inference), known(1))
    assert any("Set batch=62." in warning for warning in found.warnings)
    assert found.facts["time"] == "not estimated"


# Speed and time


def test_the_speed_is_measured_before_stated_before_assumed_before_unknown() -> None:
    stated = DeviceConfig(name="H100", tokens_per_second=400_000)
    run = Measured(speed=Measurement(350_000, "pretrain-1a2b3c4d"))
    sources = [
        made(known(8, stated, measured=run)),
        made(known(8, stated)),
        made(known(8, H100)),
        made(known(8, DeviceConfig())),
    ]
    assert [found.numbers["speed_source"] for found in sources] == [
        *("measured", "stated", "assumed", None)
    ]
    assert "run pretrain-1a2b3c4d" in sources[0].facts["speed"]
    assert "stated" in sources[1].facts["speed"]
    assert "assumed: 35%" in sources[2].facts["speed"]
    assert "schedule.steps=200" in sources[3].facts["speed"]
    assert sources[3].numbers["seconds"] is None
    assert "unknown" in sources[3].facts["time"]


def test_a_stated_speed_that_a_run_contradicts_is_noted() -> None:
    stated = DeviceConfig(name="H100", tokens_per_second=700_000)
    run = Measured(speed=Measurement(350_000, "tiny"))
    assert any("350,000" in note for note in made(known(8, stated, measured=run)).notes)
    run = Measured(speed=Measurement(690_000, "tiny"))
    assert made(known(8, stated, measured=run)).notes == []


def test_time_is_tokens_over_the_speed_of_all_workers() -> None:
    device = DeviceConfig(name="H100", tokens_per_second=1_000_000)
    numbers = made(known(8, device)).numbers
    assert numbers["seconds"] == pytest.approx(1_000_000 * 128 * 1024 / 8e6)
    assert numbers["worker_hours"] == pytest.approx(8 * numbers["seconds"] / 3600)
    assert numbers["requeues"] is None


def test_a_time_limit_makes_attempts_less_grace_and_start() -> None:
    device = DeviceConfig(name="H100", tokens_per_second=1_000_000)  # 16,384 s on 8
    where = known(8, device, time_limit=4336.0)  # 4096 s of work: exactly four
    assert made(where).numbers["requeues"] == 3
    assert made(known(8, device, time_limit=4335.0)).numbers["requeues"] == 4
    assert made(known(8, device, time_limit=86_400.0)).numbers["requeues"] == 0


def test_a_time_limit_that_leaves_nothing_is_warned_of() -> None:
    found = made(known(8, time_limit=240.0))
    assert any("leaves nothing" in warning for warning in found.warnings)
    assert found.numbers["requeues"] is None


def test_features_take_the_time_of_a_pass_in_float32() -> None:
    inference = Inference(Memory({}, 1), batch=1, flops=10**18)
    found = reckon(Need(inference=inference), known(2))
    assert found.numbers["seconds"] == pytest.approx(1e18 / (2 * 0.35 * 67e12))


# Checkpoints and disk


def test_a_checkpoint_that_does_not_fit_the_grace_is_warned_of() -> None:
    size = 12 * S.parameters()
    slow = made(known(8, upload=size / 200))
    assert slow.numbers["checkpoint_seconds"] == pytest.approx(200)
    assert any("grace_seconds" in warning for warning in slow.warnings)
    assert made(known(8, upload=size / 100)).warnings == []
    assert made(known(8, upload=size / 200, grace_seconds=300.0)).warnings == []


def test_the_steps_to_the_next_exchange_count_against_the_grace() -> None:
    device = DeviceConfig(name="CPU", tokens_per_second=128 * 1024 / 10)  # 10 s a step
    where = known(1, device, upload=12 * S.parameters() / 30)
    assert any("lower sync_every" in warning for warning in made(where).warnings)
    assert made(where, sync_every=5).warnings == []


def test_a_measured_upload_goes_before_a_stated_one() -> None:
    run = Measured(upload=Measurement(12 * S.parameters() / 50, "big"))
    found = made(known(8, upload=1.0, measured=run))
    assert found.numbers["checkpoint_seconds"] == pytest.approx(50)
    assert "measured by run big" in found.facts["checkpoints"]
    unknown = made(known(8))
    assert unknown.numbers["checkpoint_seconds"] is None
    assert "unknown" in unknown.facts["checkpoints"]


def test_checkpoints_rarer_than_the_time_limit_are_warned_of() -> None:
    rare = {"every_minutes": 120.0}
    found = made(known(8, time_limit=3600.0), checkpoints=rare)
    assert any("checkpoints.every_minutes=15" in warning for warning in found.warnings)
    assert made(known(8, time_limit=10_800.0), checkpoints=rare).warnings == []
    by_steps = {"every_minutes": None, "every_steps": 1_000_000}
    found = made(known(8, time_limit=3600.0), checkpoints=by_steps)
    assert any("is due every" in warning for warning in found.warnings)


def test_a_run_that_never_saves_is_noted() -> None:
    never = made(known(), checkpoints={"every_minutes": None})
    assert any("checkpoints.every_minutes=15" in note for note in never.notes)


def test_checkpoints_that_the_disk_cannot_hold_are_warned_of() -> None:
    size = 12 * S.parameters()  # 2 newest, 4 milestones, one more while it is written
    found = made(known(8, free=7 * size - 1))
    assert found.numbers["disk_bytes"] == 7 * size
    assert any("free" in warning for warning in found.warnings)
    assert made(known(8, free=7 * size)).warnings == []
    assert made(known(8, free=None)).numbers["disk_free_bytes"] is None


def test_an_output_that_the_disk_cannot_hold_is_warned_of() -> None:
    need = Need(output_bytes=10**12)
    assert reckon(need, known(free=10**12 - 1)).warnings
    assert not reckon(need, known(free=10**12)).warnings


# The recipe


def test_a_rate_far_from_the_papers_is_noted() -> None:
    large = ModelConfig.preset("igpt-l", resolution=32)
    assert any("optimizer.learning_rate=0.001" in n for n in made(known(), model=large).notes)
    assert made(known(), model=large, optimizer={"learning_rate": 0.001}).notes == []
    assert made(known()).notes == []


def test_workers_that_do_not_divide_the_batch_are_noted() -> None:
    assert any("22 set the pace for those with 21" in n for n in made(known(6)).notes)
    assert made(known(4)).notes == []


# What earlier runs have measured


SHAPE = {"layers": 2, "width": 32, "heads": 2, "resolution": 8, "colors": 16}
HERE = LocalCluster(device=DeviceConfig(name="CPU"))


def tiny(**fields: Any) -> Training:
    return training(ModelConfig(**SHAPE), **fields)


def earlier(
    root: Store,
    cluster: LocalCluster = HERE,
    *,
    steps: int,
    rates: list[float],
    workers: int = 1,
    precision: str = "float32",
    shape: dict[str, int] = SHAPE,
) -> Run:
    """The record of a pretraining that has trained at these rates."""
    run, _ = create_run(
        root,
        job="pretrain",
        name="earlier",
        config={
            "model": {"preset": None, **shape},
            "precision": precision,
            "device": "auto",
            "schedule": {"steps": steps},
        },
        inputs={},
        status=status,
    )
    run.record.put(cluster_key(1), dump_yaml(cluster).encode())
    claim(run.record, Claim(1, "word", "host", workers, 0.0))
    lines = [{"step": n + 1, "tokens_per_second": rate} for n, rate in enumerate(rates)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    run.record.put("attempts/0001/metrics-000000001.jsonl", text.encode())
    validation = json.dumps({"step": len(lines), "validation_loss": 1.0}) + "\n"
    run.record.put("attempts/0001/metrics-000000002-validation.jsonl", validation.encode())
    run.event("started", writer="worker", attempt=1)
    return run


def test_the_speed_of_an_earlier_run_is_the_median_of_its_last_steps_a_worker(store: Store) -> None:
    run = earlier(store, steps=1, rates=[1.0] * 50 + [800.0] * 49 + [1000.0] * 51, workers=4)
    assert measured(store, tiny(), HERE).speed == Measurement(250.0, run.id)


def test_the_newest_run_counts(store: Store) -> None:
    earlier(store, steps=1, rates=[100.0])
    newest = earlier(store, steps=2, rates=[300.0])
    assert measured(store, tiny(), HERE).speed == Measurement(300.0, newest.id)


def test_another_network_precision_or_device_tells_nothing(store: Store) -> None:
    earlier(store, steps=1, rates=[1.0], precision="bfloat16")
    earlier(store, steps=2, rates=[2.0], shape=SHAPE | {"width": 64})
    earlier(store, LocalCluster(device=H100), steps=3, rates=[3.0])
    earlier(store, LocalCluster(), steps=4, rates=[4.0])
    assert measured(store, tiny(), HERE).speed is None
    found = measured(store, tiny(), LocalCluster(device=DeviceConfig(name=str(H100.name).lower())))
    assert found.speed is not None
    assert found.speed.value == 3.0
    unnamed = measured(store, tiny(), LocalCluster()).speed
    assert unnamed is not None
    assert unnamed.value == 4.0


def test_the_upload_is_the_median_of_checkpoints_large_enough_to_tell(store: Store) -> None:
    run = earlier(store, steps=1, rates=[1.0])
    for seconds in (5.0, 10.0, 20.0):
        run.event("checkpointed", writer="w", attempt=1, seconds=seconds, bytes=100_000_000)
    assert measured(store, tiny(), HERE).upload == Measurement(1e7, run.id)
    assert measured(store, training(), HERE).upload == Measurement(1e7, run.id)


def test_a_small_checkpoint_does_not_tell_how_fast_a_large_one_is_written(store: Store) -> None:
    run = earlier(store, steps=1, rates=[1.0])
    run.event("checkpointed", writer="w", attempt=1, seconds=1.0, bytes=400_000)
    assert measured(store, training(), HERE).upload is None
    assert measured(store, tiny(), HERE).upload == Measurement(400_000.0, run.id)


def test_a_damaged_record_is_named_and_does_not_stop_the_plan(store: Store) -> None:
    whole = earlier(store, steps=1, rates=[100.0])
    damaged = earlier(store, steps=2, rates=[300.0])
    damaged.record.put("attempts/0001/metrics-000000001.jsonl", b'{"step": 1, "tok')
    found = measured(store, tiny(), HERE)
    assert found.speed == Measurement(100.0, whole.id)
    assert any(damaged.id in note for note in found.notes)


def test_a_run_that_never_started_tells_nothing(store: Store) -> None:
    run = earlier(store, steps=1, rates=[1.0])
    run.record.delete(["attempts/0001/claim.json", "attempts/0001/cluster.yaml"])
    assert measured(store, tiny(), HERE) == Measured()


def test_a_job_that_says_nothing_of_its_needs_has_its_own_facts(store: Store) -> None:
    prepared = Prepared(JobConfig(job="other"), facts={"model": "later"})
    found = forecast(store, find_job("pretrain"), prepared, LocalCluster())
    assert found.facts == {"model": "later"}
    assert found.warnings == []


def test_a_forecast_reads_the_free_disk_of_a_store_that_is_not_there_yet(store: Store) -> None:
    prepared = Prepared(JobConfig(job="pretrain"), need=Need(training=tiny()))
    found = forecast(store, find_job("pretrain"), prepared, HERE)
    assert found.numbers["disk_free_bytes"] > 0
    assert store.children() == []
