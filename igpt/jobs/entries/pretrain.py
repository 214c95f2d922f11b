"""Carries out `pretrain`: hands the run to the training loop, which knows no run."""

from datetime import timedelta
from functools import partial
from typing import Any

from igpt.errors import Superseded
from igpt.jobs.context import Context, Stopped
from igpt.jobs.entries.common import dataset_of, pick_device
from igpt.jobs.pins import needs_model
from igpt.jobs.pretrain import PretrainConfig
from igpt.jobs.references import checkpoint_key
from igpt.model.transformer import ImageGPT
from igpt.runs import Run
from igpt.runs.attempts import on_lineage, read_metrics
from igpt.training.checkpoint import CheckpointRef, list_committed
from igpt.training.loop import train
from igpt.training.parallel import process_group


def run(config: PretrainConfig, context: Context) -> dict[str, Any]:
    """Trains from the claim's checkpoint to the last step; raises Stopped or Superseded before."""
    data = dataset_of(context, config.data, context.run.spec().inputs["data"])
    device = pick_device(config.device, context.local_rank)
    checkpoints = context.run.record.sub("checkpoints")
    shape = config.model.build(resolution=data.index.resolution, colors=data.index.colors)
    claim = context.claim
    start = (
        None
        if claim.start_attempt is None
        else CheckpointRef(claim.start_step, claim.start_attempt)
    )

    def counting() -> list[CheckpointRef]:
        claims = context.run.claims()
        return [
            ref for ref in list_committed(checkpoints) if on_lineage(claims, ref.attempt, ref.step)
        ]

    timeout = timedelta(seconds=context.exchange_seconds)
    with process_group(context.rank, context.world_size, device, timeout=timeout):
        outcome = train(
            config,
            ImageGPT(shape, seed=config.seed),
            data,
            rank=context.rank,
            world_size=context.world_size,
            device=device,
            checkpoints=checkpoints,
            attempt=context.attempt,
            sink=context.sink,
            stop=context.stop,
            start=start,
            counting=counting,
            needs=partial(needs_model, context.root),
            time_left=context.time_left,
        )
    if outcome.status == "superseded":
        raise Superseded(f"a newer attempt of run {context.run.id} owns it")
    if outcome.status == "stopped":
        raise Stopped(f"stopped as asked after step {outcome.step}; its checkpoint is committed")
    loss, maker = outcome.loss, context.attempt
    if claim.start_attempt is not None and outcome.step == claim.start_step:
        # The last step was taken before this attempt: its checkpoint and its loss are there.
        loss, maker = _recorded_loss(context.run, outcome.step), claim.start_attempt
    return {
        "step": outcome.step,
        "loss": loss,
        "validation_loss": outcome.validation_loss,
        "unigram_entropy": (
            data.index.unigram_entropy() if "validation" in data.index.splits else None
        ),
        "parameters": shape.parameters(),
        "checkpoint": checkpoint_key(outcome.step, maker),
    }


def _recorded_loss(run: Run, step: int) -> float | None:
    """The loss of a step by the run's metrics, nats per token; None where they lack it."""
    for line in reversed(read_metrics(run.record)):
        if line["step"] == step and "loss" in line:
            return float(line["loss"])
    return None
