"""Models go out and come back whole; transformers computes what we compute; the rest is refused."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTImageProcessor

from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.model.config import ModelConfig
from igpt.model.interchange import export_huggingface, load_model
from igpt.model.sealed import describe, seal
from igpt.model.transformer import ImageGPT
from igpt.storage import open_store


@dataclass(frozen=True)
class Palette:
    centers: np.ndarray


def random_model(colors: int = 512, layers: int = 2) -> ImageGPT:
    """Every tensor drawn anew, gains included, so that a forgotten one shows."""
    model = ImageGPT(
        ModelConfig(layers=layers, width=32, heads=4, resolution=4, colors=colors), seed=1
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def random_palette(colors: int) -> Palette:
    return Palette(np.random.default_rng(0).uniform(-1, 1, (colors, 3)).astype(np.float32))


@torch.no_grad()
def their_logits(theirs: Any, tokens: torch.Tensor, colors: int) -> torch.Tensor:
    start = torch.full((tokens.shape[0], 1), colors)
    logits: torch.Tensor = theirs.eval()(torch.cat([start, tokens[:, :-1]], dim=1)).logits
    return logits


def some_tokens(colors: int) -> torch.Tensor:
    return torch.randint(colors, (3, 16), generator=torch.Generator().manual_seed(5))


def write_checkpoint(folder: Path, model: ImageGPT, *, finish: bool = True) -> None:
    """A checkpoint as training writes it, without the optimizer."""
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"model": model.config.model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps(config))
    files = {name: folder / name for name in ("model.safetensors", "config.json")}
    if finish:
        seal(open_store(str(folder)), describe(3, files))


def same(a: ImageGPT, b: ImageGPT) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("colors", [512, 100])
def test_an_exported_model_has_the_same_logits_in_transformers(tmp_path: Path, colors: int) -> None:
    model, palette = random_model(colors), random_palette(colors)
    export_huggingface(model, palette, tmp_path / "out")
    theirs, info = ImageGPTForCausalImageModeling.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = some_tokens(colors)
    with torch.no_grad():
        ours = model(tokens)
    assert ours.std() > 0.5
    torch.testing.assert_close(their_logits(theirs, tokens, colors), ours, atol=1e-4, rtol=1e-4)
    dropout = (theirs.config.resid_pdrop, theirs.config.embd_pdrop, theirs.config.attn_pdrop)
    assert dropout == (0, 0, 0)


def test_an_exported_palette_encodes_in_transformers(tmp_path: Path) -> None:
    model, palette = random_model(20), random_palette(20)
    export_huggingface(model, palette, tmp_path)
    processor = ImageGPTImageProcessor.from_pretrained(tmp_path)
    images = np.random.default_rng(1).integers(256, size=(2, 4, 4, 3)).astype(np.uint8)
    ids = processor(list(images), return_tensors="pt", input_data_format="channels_last").input_ids
    pixels = images.reshape(-1, 1, 3) / 127.5 - 1
    nearest = ((pixels - palette.centers) ** 2).sum(-1).argmin(-1)
    assert np.array_equal(ids.reshape(-1), nearest)


def test_an_exported_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = random_model(64)
    export_huggingface(model, random_palette(64), tmp_path)
    back = load_model(tmp_path)
    assert back.config == model.config
    assert same(back, model)
    assert all(p.requires_grad for p in back.parameters())


@pytest.mark.parametrize(("colors", "shard_size"), [(512, "1GB"), (30, "20KB")])
def test_a_model_of_transformers_has_the_same_logits_here(
    tmp_path: Path, colors: int, shard_size: str
) -> None:
    torch.manual_seed(0)
    theirs = ImageGPTForCausalImageModeling(
        ImageGPTConfig(vocab_size=colors + 1, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if not name.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    tokens = some_tokens(colors)
    with torch.no_grad():
        ours = load_model(tmp_path)(tokens)
    torch.testing.assert_close(ours, their_logits(theirs, tokens, colors), atol=1e-4, rtol=1e-4)


def test_a_bias_that_is_not_zero_is_refused(tmp_path: Path) -> None:
    export_huggingface(random_model(8), random_palette(8), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.bias"][3] = 1e-3
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not an OpenAI Image GPT"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "gelu"),
        ("n_inner", 64),
        ("scale_attn_by_inverse_layer_idx", True),
        ("n_positions", 15),
        ("layer_norm_epsilon", 1e-6),
        ("n_embd", "wide"),
    ],
)
def test_another_network_under_the_same_name_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    export_huggingface(random_model(8), random_palette(8), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=r"is not an (OpenAI Image GPT|ImageGPT config)"):
        load_model(tmp_path)


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    export_huggingface(random_model(8), random_palette(8), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    weights = tmp_path / "model.safetensors"
    save_file({k: v for k, v in tensors.items() if k != "lm_head.weight"}, weights)
    with pytest.raises(UserError, match=r"no tensor 'lm_head.weight'"):
        load_model(tmp_path)
    save_file(tensors | {"score.weight": torch.zeros(2, 32)}, weights)
    with pytest.raises(UserError, match=r"does not have: score\.weight"):
        load_model(tmp_path)
    save_file(tensors | {"transformer.wpe.weight": torch.zeros(9, 32)}, weights)
    with pytest.raises(UserError, match=r"'wpe.weight' has shape \[9, 32\].*\[16, 32\]"):
        load_model(tmp_path)
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.bool)}
    save_file(tensors | mask, weights)  # older files carry the causal mask
    load_model(tmp_path)
    weights.write_bytes(b"not tensors")
    with pytest.raises(DataCorrupt, match="not a safetensors file"):
        load_model(tmp_path)


def test_a_palette_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\[8, 3\]"):
        export_huggingface(random_model(8), random_palette(9), tmp_path)


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    export_huggingface(random_model(8), random_palette(8), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        load_model(tmp_path)


def test_a_tensorflow_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt-131000.index").write_bytes(b"")
    with pytest.raises(UserError, match="TensorFlow checkpoint"):
        load_model(tmp_path)


def test_an_index_cannot_name_a_file_outside_the_folder(tmp_path: Path) -> None:
    export_huggingface(random_model(8), random_palette(8), tmp_path / "in")
    (tmp_path / "in/model.safetensors").rename(tmp_path / "other.safetensors")
    index = {"weight_map": {"lm_head.weight": "../other.safetensors"}}
    (tmp_path / "in/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not in the folder"):
        load_model(tmp_path / "in")


def test_a_checkpoint_loads_by_its_step_and_by_its_attempt(tmp_path: Path) -> None:
    first, second = random_model(8), random_model(8, layers=3)
    step = tmp_path / "step-000000003"
    write_checkpoint(step / "attempt-2", first)
    write_checkpoint(step / "attempt-10", second)
    write_checkpoint(step / "attempt-11", random_model(9), finish=False)
    assert same(load_model(step), second)
    assert same(load_model(str(step / "attempt-2")), first)
    with pytest.raises(UserError, match="never finished"):
        load_model(step / "attempt-11")


def test_a_loaded_model_outlives_its_files(tmp_path: Path) -> None:
    model = random_model(8)
    write_checkpoint(tmp_path / "attempt-1", model)
    loaded = load_model(tmp_path / "attempt-1")
    weights = tmp_path / "attempt-1/model.safetensors"
    weights.write_bytes(b"\0" * weights.stat().st_size)
    assert same(loaded, model)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "attempt-1", random_model(8))
    path = tmp_path / "attempt-1" / name
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises((DataCorrupt, UserError), match=r"damaged|not the one that was|not JSON"):
        load_model(tmp_path / "attempt-1")


def test_a_folder_of_checkpoints_says_which_there_are(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step-000000003" / "attempt-1", random_model(8))
    with pytest.raises(UserError, match=r"step-000000003"):
        load_model(tmp_path)


def test_an_empty_folder_and_one_without_a_model_differ(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_model(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(tmp_path)
