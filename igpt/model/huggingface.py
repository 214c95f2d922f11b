"""How Hugging Face `transformers` writes an Image GPT, and how its tensors map to ours.

Differences (transformers' `modeling_imagegpt.py`): row V of `wte` is our `sos`, which the caller
must prepend himself; the linear layers are Conv1D, weights [in, out] with a bias that OpenAI's
network does not have; dropout is 0.1 by default where the paper has none.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from igpt.errors import UserError
from igpt.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

#: Our name of a tensor inside a block -> theirs. The last four are Conv1D: transposed, with a bias.
_BLOCK = {
    "ln_1.weight": "ln_1.weight",
    "ln_2.weight": "ln_2.weight",
    "attention.qkv.weight": "attn.c_attn.weight",
    "attention.out.weight": "attn.c_proj.weight",
    "up.weight": "mlp.c_fc.weight",
    "down.weight": "mlp.c_proj.weight",
}
_CONV1D = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class _Config(BaseModel):
    """The part of their config.json that decides what the network computes, with its defaults."""

    model_config = ConfigDict(extra="ignore")

    vocab_size: int = 513
    n_positions: int = 1024
    n_embd: int = 512
    n_layer: int = 24
    n_head: int = 8
    n_inner: int | None = None
    activation_function: str = "quick_gelu"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False


def read_config(config: Mapping[str, object], where: str) -> ModelConfig:
    """The shape in their config.json. Raises UserError for a network that is not OpenAI's."""
    try:
        theirs = _Config.model_validate(dict(config))
        resolution = math.isqrt(theirs.n_positions)
        shape = ModelConfig(
            layers=theirs.n_layer,
            width=theirs.n_embd,
            heads=theirs.n_head,
            resolution=resolution,
            colors=theirs.vocab_size - 1,
        )
    except ValueError as error:
        raise UserError(f"{where} is not an ImageGPT config.json: {error}") from None
    differences = {
        f"n_positions {theirs.n_positions} is no square": resolution**2 != theirs.n_positions,
        f"n_inner {theirs.n_inner} is not 4 x n_embd": theirs.n_inner
        not in (None, 4 * theirs.n_embd),
        f"activation {theirs.activation_function!r} is not quick_gelu": theirs.activation_function
        != "quick_gelu",
        f"layer_norm_epsilon {theirs.layer_norm_epsilon} is not 1e-5": theirs.layer_norm_epsilon
        != 1e-5,
        "attention is not scaled by the head size": not theirs.scale_attn_weights,
        "attention is scaled by the layer": theirs.scale_attn_by_inverse_layer_idx,
        "there is cross attention": theirs.add_cross_attention,
    }
    found = [difference for difference, applies in differences.items() if applies]
    if found:
        raise UserError(f"{where} is not an OpenAI Image GPT: {'; '.join(found)}")
    return shape


def write_config(config: ModelConfig) -> dict[str, object]:
    """Their config.json of our shape: no dropout, untied head."""
    return {
        "architectures": ["ImageGPTForCausalImageModeling"],
        "model_type": "imagegpt",
        "vocab_size": config.colors + 1,
        "n_positions": config.positions,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": None,
        "activation_function": "quick_gelu",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "float32",
    }


def to_ours(config: ModelConfig, theirs: Mapping[str, "Tensor"], where: str) -> dict[str, "Tensor"]:
    """Our state, float32, from their tensors.

    Raises UserError for a bias that is not zero and for tensors that are missing, unknown or of
    another shape.
    """
    rest = {name: tensor for name, tensor in theirs.items() if not _is_mask(name)}
    ours: dict[str, Tensor] = {}
    for name, their_name in _names(config).items():
        ours[name] = _take(rest, their_name, where).float()
        if _is_conv1d(their_name):
            ours[name] = ours[name].T.contiguous()
            bias = _take(rest, their_name.replace(".weight", ".bias"), where)
            if bias.count_nonzero():
                raise UserError(
                    f"{where} has biases that are not zero, so it is not an OpenAI Image GPT",
                    expected="a network without biases, as OpenAI released it",
                )
    packed = _take(rest, "transformer.wte.weight", where).float()
    ours["wte.weight"], ours["sos"] = packed[:-1].clone(), packed[-1].clone()
    if rest:
        raise UserError(f"{where} holds tensors that an Image GPT does not have: {_some(rest)}")
    return ours


def to_theirs(config: ModelConfig, ours: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Their tensors, float32 on the CPU, from our state."""
    import torch

    state = {name: tensor.detach().float().cpu() for name, tensor in ours.items()}
    theirs: dict[str, Tensor] = {}
    for name, their_name in _names(config).items():
        tensor = state[name]
        if _is_conv1d(their_name):
            theirs[their_name.replace(".weight", ".bias")] = torch.zeros(tensor.shape[0])
            tensor = tensor.T.contiguous()
        theirs[their_name] = tensor
    theirs["transformer.wte.weight"] = torch.cat([state["wte.weight"], state["sos"][None]])
    return theirs


def _names(config: ModelConfig) -> dict[str, str]:
    """Our name -> theirs, for all tensors but `wte` and `sos`, which they pack into one."""
    names = {
        "wpe.weight": "transformer.wpe.weight",
        "ln_f.weight": "transformer.ln_f.weight",
        "head.weight": "lm_head.weight",
    }
    for block in range(config.layers):
        for ours, theirs in _BLOCK.items():
            names[f"blocks.{block}.{ours}"] = f"transformer.h.{block}.{theirs}"
    return names


def _is_conv1d(name: str) -> bool:
    return name.removesuffix(".weight").endswith(_CONV1D)


def _is_mask(name: str) -> bool:
    """Older files carry the causal mask as a buffer of the attention."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def _take(tensors: dict[str, "Tensor"], name: str, where: str) -> "Tensor":
    if name not in tensors:
        raise UserError(
            f"{where} has no tensor {name!r}",
            expected="an ImageGPTForCausalImageModeling saved by transformers",
        )
    return tensors.pop(name)


def _some(names: Mapping[str, object]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
