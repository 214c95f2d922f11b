"""Models in and out: our checkpoints and Hugging Face folders, from a directory or `s3://`.

Only safetensors are read; a pickle can run code when it is loaded and is refused. Exported folders
load in `transformers` as `ImageGPTForCausalImageModeling`, and a test holds the logits of both
together to 1e-4 in float32.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.model import huggingface
from igpt.model.config import ModelConfig
from igpt.model.sealed import local_copy, newest_attempt, read_manifest, verified
from igpt.model.tensors import save_tensors
from igpt.model.transformer import ImageGPT
from igpt.storage import Store, open_store
from igpt.storage.files import explained

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_READABLE = (
    "a checkpoint (.../checkpoints/step-<n>, or one attempt-<n> of it) or a folder that "
    "transformers' save_pretrained or export_huggingface wrote"
)


class Colors(Protocol):
    """What an export needs of a palette."""

    @property
    def centers(self) -> NDArray[Any]:
        """Float [V, 3], red, green and blue in [-1, 1]."""


def load_model(source: str | Path, device: str | torch.device = "cpu") -> ImageGPT:
    """The network in a folder or under an `s3://` address, float32, on `device`.

    Reads our checkpoints (a step folder, of which the newest committed attempt counts, or an
    attempt folder) and Hugging Face ImageGPT folders, one file or sharded.

    Raises NotFound where there is nothing; UserError for anything else, for pickles, for an
    unfinished checkpoint and for a network that is not OpenAI's; DataCorrupt where the bytes are
    not those that were written.
    """
    store = open_store(str(source))
    names = store.children()
    attempt = newest_attempt(names, store)
    if attempt is not None:
        store = store.sub(attempt)
        names = store.children()
    _refuse_what_cannot_be_read(names, store.uri)
    with tempfile.TemporaryDirectory(prefix="igpt-model-") as scratch:
        config = _json(store, CONFIG)
        if config.get("model_type") == "imagegpt":
            shape = huggingface.read_config(config, f"{store.uri}/{CONFIG}")
            theirs = _huggingface_tensors(store, names, Path(scratch))
            state = huggingface.to_ours(shape, theirs, store.uri)
        else:
            manifest = read_manifest(store)
            path = verified(store, manifest, CONFIG, Path(scratch))
            with explained("read", path):
                config = json.loads(path.read_text(encoding="utf-8"))
            shape = _shape(config, store.uri)
            state = _tensors(verified(store, manifest, WEIGHTS, Path(scratch)))
        return assemble(shape, state, device, store.uri)


def assemble(
    config: ModelConfig, state: Mapping[str, Tensor], device: str | torch.device, where: str
) -> ImageGPT:
    """A network of this shape that holds `state`. Raises UserError where they do not fit."""
    with torch.device("meta"):
        model = ImageGPT(config)
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in state.items()}
    if wanted != found:
        wrong = sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )
        raise UserError(
            f"{where}: tensor {wrong[0]!r} has shape {found.get(wrong[0], 'none')}",
            expected=f"shape {wanted.get(wrong[0], 'none')} from its config.json",
        )
    # A copy each: what was mapped from a file must not go when the file does.
    owned = {
        name: tensor.to(device=device, dtype=torch.float32, copy=True)
        for name, tensor in state.items()
    }
    model.load_state_dict(owned, assign=True)
    return model


def export_huggingface(model: ImageGPT, palette: Colors, folder: str | Path) -> None:
    """Writes the model where `ImageGPTForCausalImageModeling.from_pretrained` finds it.

    folder: a directory or `s3://` address; `config.json`, `model.safetensors` and
        `preprocessor_config.json` (the palette's centres, the image size) are written there.

    That class does not prepend the start token: for our logits feed it [V, x_0, ..., x_{n-2}].
    Raises UserError where the palette is not the model's, and Unreachable where a disk is full.
    """
    config = model.config
    if palette.centers.shape != (config.colors, 3):
        raise UserError(
            f"the palette has shape {list(palette.centers.shape)}",
            expected=f"[{config.colors}, 3], the colours that the model was trained on",
        )
    processor = {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": [[float(value) for value in center] for center in palette.centers],
        "do_color_quantize": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 2,  # bilinear
        "size": {"height": config.resolution, "width": config.resolution},
    }
    store = open_store(str(folder))
    with tempfile.TemporaryDirectory(prefix="igpt-export-") as scratch:
        weights = Path(scratch) / WEIGHTS
        theirs = huggingface.to_theirs(config, model.state_dict())
        save_tensors(theirs, weights, metadata={"format": "pt"})
        store.upload(WEIGHTS, weights)
    store.put("preprocessor_config.json", _dump(processor))
    store.put(CONFIG, _dump(huggingface.write_config(config)))


def _refuse_what_cannot_be_read(names: list[str], where: str) -> None:
    """The common mistakes, each by its own name."""
    if not names:
        raise NotFound(f"{where} is empty or does not exist", expected=_READABLE)
    if any(re.fullmatch(r"model\.ckpt.*|checkpoint", name) for name in names):
        raise UserError(
            f"{where} is a TensorFlow checkpoint of OpenAI's release, which is not read yet",
            expected=_READABLE,
            mend="Use the same weights in Hugging Face form (openai/imagegpt-small and others).",
        )
    if any(name.startswith("step-") for name in names):
        steps = [name for name in names if name.startswith("step-")]
        raise UserError(
            f"{where} holds {len(steps)} checkpoints",
            expected="one of them",
            mend=f"Name it, for example {where}/{steps[-1]}",
        )
    if any(name.startswith("attempt-") for name in names):
        raise UserError(f"{where} holds no finished checkpoint", expected=_READABLE)
    if CONFIG not in names:
        raise UserError(f"{where} holds no {CONFIG}", expected=_READABLE)
    safe = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    pickles = [name for name in names if re.search(r"\.(bin|pt|pth|ckpt|pkl)$", name)]
    if pickles and not safe:
        raise UserError(
            f"{where}/{pickles[0]} is a pickle, which can run code when it is loaded",
            expected="model.safetensors",
            mend="Save the model again with transformers' save_pretrained, which writes one.",
        )


def _huggingface_tensors(store: Store, names: list[str], scratch: Path) -> dict[str, Tensor]:
    if WEIGHTS in names:
        return _tensors(local_copy(store, WEIGHTS, scratch))
    index = _json(store, f"{WEIGHTS}.index.json") if f"{WEIGHTS}.index.json" in names else {}
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{store.uri} holds no {WEIGHTS}", expected=_READABLE)
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(value) for value in weight_map.values()}):
        if name not in names or not name.endswith(".safetensors"):
            raise UserError(
                f"{store.uri}/{WEIGHTS}.index.json names {name!r}, which is not in the folder"
            )
        tensors |= _tensors(local_copy(store, name, scratch))
    return tensors


def _tensors(path: Path) -> dict[str, Tensor]:
    with explained("read", path):
        try:
            tensors: dict[str, Tensor] = load_file(path)
        except SafetensorError as error:
            raise DataCorrupt(f"{path} is not a safetensors file: {error}") from None
    return tensors


def _shape(config: Mapping[str, Any], where: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(config.get("model"))
    except ValidationError as error:
        raise UserError(
            f"{where}/{CONFIG} describes no model of ours: {error}", expected=_READABLE
        ) from None


def _json(store: Store, name: str) -> dict[str, Any]:
    try:
        value = json.loads(store.get(name))
    except ValueError as error:
        raise UserError(f"{store.uri}/{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{store.uri}/{name} is not a JSON object")
    return value


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
