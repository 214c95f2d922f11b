"""Carries out `features`, and makes for other jobs the features that they miss."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from igpt.data import Dataset
from igpt.evaluation import features_key, model_digest, write_features
from igpt.jobs.context import Context
from igpt.jobs.entries.common import dataset_of, pick_device
from igpt.jobs.features import FeaturesConfig
from igpt.jobs.references import open_reference
from igpt.model.interchange import load_model
from igpt.model.transformer import ImageGPT
from igpt.storage import Store


def run(config: FeaturesConfig, context: Context) -> dict[str, Any]:
    """Writes features/<key>/ into the store; the result says where they are."""
    data = dataset_of(context, config.data or "", context.run.spec().inputs["data"])
    device = pick_device(config.device, context.local_rank)
    key = make_features(
        context,
        load_subject(context, config.model, untrained=config.untrained),
        data,
        config.splits,
        batch=config.batch,
        device=device,
        report=lambda done, total: context.sink.progress(done=done, total=total, unit="images"),
    )
    return {"features": key, "model": config.model, "untrained": config.untrained}


def load_subject(context: Context, reference: str, *, untrained: bool) -> ImageGPT:
    """The model of a reference, or the same network with the weights its training began with."""
    folder = open_reference(context.root, reference)
    model = load_model(folder.uri)
    return ImageGPT(model.config, seed=_training_seed(folder)) if untrained else model


def make_features(
    context: Context,
    model: ImageGPT,
    data: Dataset,
    splits: Sequence[str],
    *,
    batch: int,
    device: torch.device,
    report: Callable[[int, int], None],
) -> str:
    """The place in the store of the model's features, computed by all ranks where they miss.

    report: called with the samples done and all samples, of this rank and over all splits.
    """
    key = f"features/{features_key(model_digest(model), data.digest)}"
    store = context.root.sub(key)
    context.keeps_pieces(store)
    total = sum(data.samples(split) for split in splits)
    before = 0
    for split in splits:
        size = data.samples(split)

        def progress(done: int, of: int, before: int = before, size: int = size) -> None:
            context.check_stop()
            if context.rank == 0:
                report(before + done * size // max(of, 1), total)

        write_features(
            model,
            data,
            split,
            store,
            batch=batch,
            rank=context.rank,
            world_size=context.world_size,
            device=str(device),
            progress=progress,
        )
        before += size
    return key


def _training_seed(folder: Store) -> int:
    """The seed of a checkpoint's training; 0 for a model that records none."""
    config = json.loads(folder.get("config.json"))
    return int(config.get("training", {}).get("seed", 0))
