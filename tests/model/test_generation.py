"""The sampler with a cache draws what the sampler without one draws."""

import numpy as np
import pytest
import torch

from igpt.errors import UserError
from igpt.model.config import ModelConfig
from igpt.model.generation import generate
from igpt.model.transformer import ImageGPT

TINY = ModelConfig(layers=3, width=12, heads=3, resolution=4, colors=7)


@pytest.fixture(scope="module")
def model() -> ImageGPT:
    model = ImageGPT(TINY)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


@torch.no_grad()
def naive(model: ImageGPT, n: int, prompt: np.ndarray, seed: int) -> np.ndarray:
    """Every token by a forward pass over the whole image."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros((n, TINY.positions), dtype=torch.int64)
    tokens[:, : prompt.shape[1]] = torch.from_numpy(prompt.astype(np.int64))
    for position in range(prompt.shape[1], TINY.positions):
        probabilities = model(tokens)[:, position].softmax(-1)
        tokens[:, position] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return tokens.numpy()


@torch.no_grad()
@pytest.mark.parametrize("known", [0, 1, 7, 15])
def test_cached_logits_are_those_of_the_whole_network(model: ImageGPT, known: int) -> None:
    tokens = torch.randint(7, (5, 16), generator=torch.Generator().manual_seed(4))
    whole = model(tokens)
    logits, cache = model.prefill(tokens[:, :known])
    torch.testing.assert_close(logits, whole[:, known], atol=1e-5, rtol=1e-5)
    for position in range(known + 1, TINY.positions):
        logits = model.decode(tokens[:, position - 1], cache)
        torch.testing.assert_close(logits, whole[:, position], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("known", [0, 1, 8, 15, 16])
def test_draws_are_those_of_the_sampler_without_a_cache(model: ImageGPT, known: int) -> None:
    prompt = np.random.default_rng(0).integers(7, size=(6, known)).astype(np.uint16)
    drawn = generate(model, 6, prompt=prompt, seed=11)
    assert drawn.dtype == np.uint16
    assert drawn.shape == (6, 16)
    assert np.array_equal(drawn, naive(model, 6, prompt, seed=11))
    assert np.array_equal(drawn[:, :known], prompt)


def test_one_prompt_serves_all_images(model: ImageGPT) -> None:
    half = np.arange(7, dtype=np.uint16)
    drawn = generate(model, 4, prompt=half, seed=1)
    assert (drawn[:, :7] == half).all()
    assert len({tuple(image) for image in drawn.tolist()}) > 1


def test_the_seed_decides(model: ImageGPT) -> None:
    assert np.array_equal(generate(model, 3, seed=5), generate(model, 3, seed=5))
    assert not np.array_equal(generate(model, 3, seed=5), generate(model, 3, seed=6))


@torch.no_grad()
def test_temperature_zero_takes_the_likeliest_and_a_low_one_comes_near_it(model: ImageGPT) -> None:
    greedy = generate(model, 2, temperature=0.0, seed=1)
    logits = model(torch.from_numpy(greedy.astype(np.int64)))
    assert np.array_equal(logits.argmax(-1).numpy(), greedy)
    assert np.array_equal(generate(model, 2, temperature=1e-6, seed=9), greedy)


@pytest.mark.parametrize(
    ("prompt", "temperature", "message"),
    [
        (np.zeros((3, 4), np.uint16), 1.0, r"shape \[3, 4\]"),
        (np.zeros((2, 17), np.uint16), 1.0, "at most 16"),
        (np.full((2, 4), 7, np.uint16), 1.0, "0 to 6"),
        (None, -1.0, "temperature"),
        (None, float("nan"), "temperature"),
    ],
)
def test_wrong_input_is_named(
    model: ImageGPT, prompt: np.ndarray | None, temperature: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(model, 2, prompt=prompt, temperature=temperature)
