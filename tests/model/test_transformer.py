"""The network is OpenAI's: counts, first loss, norm, activation, shift, masking, features."""

import math

import pytest
import torch
import torch.nn.functional as F

from igpt.model.config import ModelConfig
from igpt.model.transformer import Block, ImageGPT, RMSNorm

TINY = ModelConfig(layers=3, width=12, heads=3, resolution=4, colors=7)


def draw(model: ImageGPT, scale: float = 0.3) -> ImageGPT:
    """The model with every weight drawn anew, the head and the gains included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def some_tokens(images: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TINY.colors, (images, TINY.positions), generator=generator)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("igpt-s", 76_571_648),
        ("igpt-m", 455_157_760),
        ("igpt-l", 1_362_250_752),
        ("igpt-xl", 6_801_438_720),
    ],
)
def test_presets_have_the_published_parameter_counts(preset: str, parameters: int) -> None:
    config = ModelConfig.preset(preset, resolution=32)
    with torch.device("meta"):
        model = ImageGPT(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert config.parameters() == parameters


def test_medium_has_eight_heads_of_128() -> None:
    config = ModelConfig.preset("igpt-m", resolution=32)
    assert (config.heads, config.width // config.heads) == (8, 128)


def test_flops_follow_the_published_count() -> None:
    config = ModelConfig.preset("igpt-s", resolution=32)
    assert config.training_flops_per_token() == pytest.approx(0.606e9, rel=0.01)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match='did you mean "igpt-xl"'):
        ModelConfig.preset("igptxl", resolution=32)


@pytest.mark.parametrize("colors", [512, 7])
def test_the_first_loss_is_the_logarithm_of_the_colours(colors: int) -> None:
    config = ModelConfig(layers=2, width=16, heads=2, resolution=4, colors=colors)
    tokens = torch.randint(colors, (3, 16), generator=torch.Generator().manual_seed(0))
    loss = ImageGPT(config).loss(tokens)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(colors), abs=1e-6)


def test_initialisation_is_openais_and_a_function_of_the_seed() -> None:
    config = ModelConfig(layers=4, width=128, heads=4, resolution=16, colors=512)
    model = ImageGPT(config, seed=3)
    deviations = {
        "wte.weight": 0.02,
        "wpe.weight": 0.01,
        "blocks.2.attention.qkv.weight": 128**-0.5,
        "blocks.2.attention.out.weight": (128 * 4) ** -0.5,
        "blocks.2.up.weight": 0.02,
        "blocks.2.down.weight": 0.02,
    }
    state = model.state_dict()
    for name, deviation in deviations.items():
        assert state[name].std().item() == pytest.approx(deviation, rel=0.03), name
    assert 0.012 < state["sos"].std().item() < 0.028
    assert state["head.weight"].count_nonzero() == 0
    assert (state["blocks.0.ln_1.weight"] == 1).all()
    torch.rand(5)  # the global stream does not matter
    again = ImageGPT(config, seed=3).state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state["wte.weight"], ImageGPT(config, seed=4).state_dict()["wte.weight"])


def test_the_norm_subtracts_no_mean_and_has_no_bias() -> None:
    norm = RMSNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    expected = 3 / math.sqrt(9 + 1e-5) * norm.weight
    torch.testing.assert_close(norm(x), expected[None])
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    tiny = torch.full((1, 4), 1e-3)  # here eps, inside the root, decides
    torch.testing.assert_close(norm(tiny), (1e-3 / math.sqrt(1e-6 + 1e-5) * norm.weight)[None])


def test_no_tensor_is_a_bias() -> None:
    assert not [name for name, _ in ImageGPT(TINY).named_parameters() if "bias" in name]


def test_a_block_is_the_released_formula() -> None:
    model = draw(ImageGPT(TINY))
    block = model.blocks[0]
    assert isinstance(block, Block)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2))

    def norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * gain

    y = norm(x, block.ln_1.weight)
    q, k, v = (
        (y @ w.T).view(2, 5, 3, 4).transpose(1, 2) for w in block.attention.qkv.weight.split(12)
    )
    scores = q @ k.transpose(-1, -2) / math.sqrt(4)
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -1e10)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 12)
    h = x + mixed @ block.attention.out.weight.T
    u = norm(h, block.ln_2.weight) @ block.up.weight.T
    h = h + (u * torch.sigmoid(1.702 * u)) @ block.down.weight.T
    after, normed = block(x, True)
    torch.testing.assert_close(after, h, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(normed, y)


@torch.no_grad()
def test_a_token_changes_only_the_logits_behind_it() -> None:
    model = draw(ImageGPT(TINY))
    tokens = some_tokens(1)
    before = model(tokens)
    for position in range(TINY.positions):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % TINY.colors
        difference = (model(changed) - before).abs().amax(dim=(0, 2))
        assert (difference[: position + 1] == 0).all()
        assert (difference[position + 1 :] > 0).all()


@torch.no_grad()
def test_position_zero_sees_the_start_vector_alone() -> None:
    model = draw(ImageGPT(TINY))
    first = model(some_tokens(6))[:, 0]
    torch.testing.assert_close(first, first[:1].expand_as(first))
    model.sos.add_(1)
    assert not torch.allclose(model(some_tokens(6))[:, 0], first)


def test_the_last_embedding_of_the_input_gets_no_gradient() -> None:
    model = draw(ImageGPT(TINY))
    tokens = torch.zeros((1, TINY.positions), dtype=torch.int64)
    tokens[0, -1] = 6  # stands only in the last place
    model.loss(tokens).backward()
    assert model.wte.weight.grad is not None
    assert model.wte.weight.grad[6].count_nonzero() == 0
    assert model.sos.grad is not None
    assert model.sos.grad.count_nonzero() > 0


@torch.no_grad()
def test_the_loss_is_the_mean_in_nats_over_every_token() -> None:
    model = draw(ImageGPT(TINY))
    tokens = some_tokens(3)
    log_p = model(tokens).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(model.loss(tokens), -log_p.mean())
    torch.testing.assert_close(model.loss(tokens, reduction="sum"), -log_p.mean(1).sum())


@torch.no_grad()
def test_bert_hides_the_token_before_the_positions_are_added() -> None:
    model = draw(ImageGPT(TINY))
    tokens = some_tokens(2)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, 3] = mask[0, 9] = True
    logits = model(tokens, objective="bert", mask=mask)
    other = tokens.clone()
    other[mask] = (other[mask] + 1) % TINY.colors
    assert torch.equal(model(other, objective="bert", mask=mask), logits)
    seen = tokens.clone()
    seen[:, -1] = (seen[:, -1] + 1) % TINY.colors
    assert (model(seen, objective="bert", mask=mask)[:, 0] != logits[:, 0]).any()  # bidirectional
    log_p = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    per_image = torch.stack([-(log_p[0, 3] + log_p[0, 9]) / 2, -log_p[1, 3]])
    torch.testing.assert_close(model.loss(tokens, objective="bert", mask=mask), per_image.mean())
    model.sos.add_(1)  # not part of this objective
    assert torch.equal(model(tokens, objective="bert", mask=mask), logits)


def test_bert_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="needs mask"):
        ImageGPT(TINY).loss(some_tokens(1), objective="bert")


def test_tokens_of_another_resolution_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \[images, 16\] \(4x4\)"):
        ImageGPT(TINY)(torch.zeros((2, 9), dtype=torch.int64))


@torch.no_grad()
def test_features_are_the_pooled_normed_inputs_of_each_block_and_ln_f() -> None:
    model = draw(ImageGPT(TINY))
    tokens = some_tokens(5)
    expected = []
    shifted = torch.cat([model.sos.expand(5, 1, -1), model.wte(tokens)[:, :-1]], dim=1)
    h = shifted + model.wpe.weight
    for block in model.blocks:
        expected.append(F.rms_norm(h, (12,), block.ln_1.weight, 1e-5).mean(dim=1))
        h, _ = block(h, True)
    expected.append(model.ln_f(h).mean(dim=1))
    features = model.features(tokens)
    assert features.shape == (TINY.layers + 1, 5, TINY.width)
    torch.testing.assert_close(features, torch.stack(expected))
    torch.testing.assert_close(  # ln_f is what the head reads
        features[-1] @ model.head.weight.T, model(tokens).mean(dim=1)
    )
