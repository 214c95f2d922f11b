"""What a job will cost on a cluster, before it costs anything: memory, disk, time, requeues.

`forecast` gathers what is known (the cluster file, earlier runs, the free disk); `reckon`, which is
pure, holds the job's need against it. A device's GB are 2^30 bytes, a disk's and a checkpoint's
10^9.
"""

import shutil

from igpt.clusters.base import ClusterConfig
from igpt.clusters.planning import reckoning
from igpt.clusters.planning.measured import Measured, measured
from igpt.clusters.planning.reckoning import Forecast, Known
from igpt.jobs.base import Job, Prepared
from igpt.jobs.estimate import Inference, Need, Training, readable_bytes
from igpt.jobs.references import open_reference
from igpt.storage import Store

__all__ = ["Forecast", "Known", "forecast", "reckon"]


def forecast(
    root: Store,
    job: Job,
    prepared: Prepared,
    cluster: ClusterConfig,
    *,
    upload: float | None = None,
) -> Forecast:
    """The facts of a prepared job and what it will cost on this cluster. Writes nothing.

    upload: bytes of a checkpoint that reach the store per second, for where no run has measured it.
    A job that does not say what it needs, or cannot yet, has its own facts alone.
    """
    need = prepared.need or Need()
    place = root if need.output is None else open_reference(root, need.output)
    earlier = measured(root, need.training, cluster) if need.training else Measured()
    known = Known(cluster.most_workers, cluster.limits(), earlier, _free(place), upload)
    whole = Forecast(prepared.facts, numbers={"job": job.name, "cluster": cluster.kind})
    return reckoning.joined([whole, reckon(need, known)] if prepared.need else [whole])


def reckon(need: Need, known: Known) -> Forecast:
    """What a need comes to under these conditions. Pure."""
    numbers = {"workers": known.workers, **need.numbers}
    parts = [Forecast(need.facts, notes=list(known.measured.notes), numbers=numbers)]
    if need.training is not None:
        parts += _training(need.training, known)
    elif need.inference is not None:
        parts += _inference(need.inference, known)
    else:
        parts.append(reckoning.time_and_requeues(None, known, unknown="not estimated"))
    if need.output_bytes:
        words = readable_bytes(need.output_bytes)
        parts.append(reckoning.space_on_disk(need.output_bytes, words, known.free))
    return reckoning.joined(parts)


def _training(training: Training, known: Known) -> list[Forecast]:
    speed, spoken = reckoning.speed_of_training(training, known)
    seconds = training.paced_tokens / speed if speed else None
    return [
        Forecast(numbers=training.numbers()),
        reckoning.memory_of_training(training, known),
        reckoning.recipe_of_training(training, known),
        reckoning.checkpoints_of_training(training, known, speed),
        spoken,
        reckoning.time_and_requeues(seconds, known, unknown="unknown, as the speed is"),
    ]


def _inference(inference: Inference, known: Known) -> list[Forecast]:
    memory = reckoning.memory_of_worker(inference.memory, inference.batch, known, key="batch")
    device = known.limits.device
    peak = reckoning.peak_of(device, "float32")
    if peak is None or inference.flops is None:
        return [memory, reckoning.time_and_requeues(None, known, unknown="not estimated")]
    seconds = inference.flops / (peak * reckoning.ASSUMED_MFU * known.workers)
    spoken = Forecast({"speed": reckoning.assumed(peak, device, "float32")})
    return [memory, spoken, reckoning.time_and_requeues(seconds, known, unknown="")]


def _free(place: Store) -> int | None:
    """Bytes free where a store is a directory, which may not be there yet; else None."""
    path = place.local_path("x")
    if path is None:
        return None
    return shutil.disk_usage(next(above for above in path.parents if above.is_dir())).free
