"""Speed is counted over all workers, and a peak that is not known is not guessed."""

import pytest

from igpt.training.throughput import peak_flops, throughput


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("Tesla T4", None, 8.1e12),
        ("NVIDIA GH200 480GB", 989e12, 67e12),
        ("NVIDIA H200 NVL", 835e12, 60e12),
        ("NVIDIA A10G", 70e12, 31.5e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("a100", 312e12, 19.5e12),
        # Others, whose names hold the letters of one in the table.
        ("NVIDIA L40", None, None),
        ("NVIDIA RTX A1000", None, None),
        ("NVIDIA RTX A4000", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GeForce RTX 3090 Ti", None, None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None, None),
        ("CPU", None, None),
        ("NVIDIA Unheard-of 9000", None, None),
    ],
)
def test_peaks_by_the_name_of_the_device(
    name: str, bfloat16: float | None, float32: float | None
) -> None:
    assert peak_flops(name, "bfloat16") == bfloat16
    assert peak_flops(name, "float32") == float32


def test_speed_counts_all_workers_and_the_slowest_wait() -> None:
    speed = throughput(
        steps=10,
        seconds=2.0,
        waits=[0.1, 0.5],
        global_batch=128,
        positions=1024,
        flops_per_token=1_000_000,
        peak=1e12,
    )
    assert speed.images_per_second == 640
    assert speed.tokens_per_second == 640 * 1024
    assert speed.mfu == pytest.approx(640 * 1024 * 1e6 / 2e12)
    assert speed.data_wait == 0.25
