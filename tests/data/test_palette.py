"""The palette: exact nearest colours, files, fitting."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from igpt.data import Palette
from igpt.data import nearest as nearest_module
from igpt.data.nearest import build_table, load_table, nearest_colors
from igpt.errors import NotFound, UserError
from tests.data.examples import a_palette, noise


def brute_force(pixels: NDArray[np.uint8], centers: NDArray[np.float32]) -> NDArray[np.int64]:
    """The definition, written out: float64, one colour against all, ties to the first."""
    x = pixels.astype(np.float64) / 127.5 - 1
    c = centers.astype(np.float64)
    squares = (x[:, None, :] - c[None, :, :]) ** 2
    return ((squares[..., 0] + squares[..., 1]) + squares[..., 2]).argmin(axis=1)


#: Centres on a coarse grid of exact colours: full of ties and of repeated centres.
grids = arrays(np.uint8, st.tuples(st.integers(1, 40), st.just(3)), elements=st.integers(0, 4)).map(
    lambda places: (places * 51 / 127.5 - 1).astype(np.float32)
)
anywhere = arrays(
    np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(-1, 1, width=32)
)


@settings(max_examples=60, deadline=None)
@given(st.one_of(grids, anywhere), arrays(np.uint8, st.tuples(st.integers(1, 200), st.just(3))))
def test_a_few_colours_get_the_nearest_centre(
    centers: NDArray[np.float32], pixels: NDArray[np.uint8]
) -> None:
    assert np.array_equal(nearest_colors(pixels, centers), brute_force(pixels, centers))


@settings(max_examples=3, deadline=None)
@given(st.one_of(grids, anywhere), st.integers(0, 2**32 - 1))
def test_the_table_is_the_definition(centers: NDArray[np.float32], seed: int) -> None:
    table = build_table(centers)
    pixels = np.random.default_rng(seed).integers(0, 256, (20_000, 3), dtype=np.uint8)
    wide = pixels.astype(np.int64)
    packed = (wide[:, 0] * 256 + wide[:, 1]) * 256 + wide[:, 2]
    assert np.array_equal(table[packed], brute_force(pixels, centers))


def test_the_table_breaks_ties_of_a_lattice_to_the_lowest_index() -> None:
    levels = np.array([0, 64, 128, 192])  # all midpoints are whole, so ties are exact and many
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    order = np.random.default_rng(0).permutation(len(cube))
    centers = ((cube / 127.5 - 1)[order]).astype(np.float32)
    middles = np.arange(0, 256, 32, dtype=np.uint8)
    pixels = np.stack(np.meshgrid(middles, middles, middles), axis=-1).reshape(-1, 3)
    wide = pixels.astype(np.int64)
    packed = (wide[:, 0] * 256 + wide[:, 1]) * 256 + wide[:, 2]
    assert np.array_equal(build_table(centers)[packed], brute_force(pixels, centers))


def test_few_and_many_images_are_encoded_alike() -> None:
    palette, images = a_palette(64), noise(80, 32)
    by_one = np.concatenate([Palette(palette.centers).encode(images[i : i + 1]) for i in range(80)])
    assert np.array_equal(palette.encode(images), by_one)
    assert by_one.dtype == np.uint16
    assert by_one.shape == (80, 1024)


def test_pixels_are_read_row_by_row_as_red_green_blue() -> None:
    palette = Palette(np.array([[-1, -1, -1], [1, -1, -1], [-1, -1, 1]], np.float32))
    image = np.zeros((1, 2, 3, 3), np.uint8)
    image[0, 0, 1] = (255, 0, 0)
    image[0, 1, 2] = (0, 0, 255)
    assert palette.encode(image).tolist() == [[0, 1, 0, 0, 0, 2]]


def test_colours_of_the_palette_come_back_from_their_tokens() -> None:
    images = noise(1, 4)
    palette = Palette.fit(images.reshape(-1, 3), colors=16)
    assert np.array_equal(palette.decode(palette.encode(images), 4), images)


def test_the_published_first_colour_is_shown_as_published() -> None:
    # Row 0 of OpenAI's palette, as the Hugging Face hub's preprocessor_config.json has it.
    row = np.array([[0.8866443634, 0.6618829370, 0.3891746402]], np.float32)
    assert Palette(row).decode(np.zeros((1, 1), np.uint16), 1).tolist() == [[[[241, 212, 177]]]]


def test_the_table_is_kept_mapped_and_proven(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    builds = []
    table = build_table(a_palette().centers)
    monkeypatch.setattr(nearest_module, "build_table", lambda centers: builds.append(1) or table)
    palette = a_palette()
    for _ in range(2):
        assert np.array_equal(load_table(palette.centers, palette.digest), table)
    assert len(builds) == 1

    (file,) = (tmp_path / "cache" / "palettes").iterdir()
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(load_table(palette.centers, palette.digest), table)
    assert "damaged" in caplog.text
    assert len(builds) == 2


def test_a_cache_that_cannot_be_written_is_said_and_costs_only_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(nearest_module, "build_table", lambda centers: np.zeros(3, np.uint16))
    assert len(load_table(a_palette().centers, "digest")) == 3
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("name", ["palette.npy", "preprocessor_config.json"])
def test_a_saved_palette_is_the_same_when_loaded(tmp_path: Path, name: str) -> None:
    palette = a_palette()
    palette.save(tmp_path / name)
    loaded = Palette.load(tmp_path / name)
    assert np.array_equal(loaded.centers, palette.centers)
    assert loaded.digest == palette.digest


def test_transformers_reads_our_json_and_finds_the_same_tokens(tmp_path: Path) -> None:
    import transformers

    palette = a_palette(64)
    palette.save(tmp_path / "preprocessor_config.json")
    processor = transformers.ImageGPTImageProcessor.from_pretrained(tmp_path)
    images = noise(2, 32)
    found = processor(list(images), return_tensors="np")["input_ids"]
    assert np.mean(np.asarray(found) == palette.encode(images)) > 0.999  # theirs is float32


def test_the_digest_is_of_the_values_alone() -> None:
    centers = a_palette().centers
    assert Palette(centers.astype(np.float64), "a note").digest == a_palette().digest
    assert Palette(-centers).digest != a_palette().digest


@pytest.mark.parametrize(
    "centers",
    [
        np.zeros((4, 4)),
        np.zeros(3),
        np.zeros((0, 3)),
        np.full((2, 3), 2.0),
        np.full((2, 3), np.nan),
    ],
)
def test_what_cannot_be_a_palette_is_refused(centers: NDArray[np.float64]) -> None:
    with pytest.raises(UserError, match="palette"):
        Palette(centers)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b"not numpy"),
        ("a.npy", b""),
        ("a.json", b"{}"),
        ("a.json", b'{"clusters": [["red"]]}'),
        ("a.json", b"["),
        ("a.txt", b""),
    ],
)
def test_a_file_that_is_no_palette_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        Palette.load(tmp_path / name)


def test_objects_in_a_npy_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="evil"):
        Palette.load(tmp_path / "evil.npy")


def test_a_missing_palette_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Palette.load(tmp_path / "none.npy")


@pytest.mark.parametrize(
    "images", [np.zeros((1, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8)]
)
def test_images_of_another_kind_are_refused(images: NDArray[np.uint8]) -> None:
    with pytest.raises(UserError, match="cannot be encoded"):
        a_palette().encode(images)


@pytest.mark.parametrize(
    "tokens",
    [np.zeros((1, 15), int), np.full((1, 16), 16), np.full((1, 16), -1), np.zeros((1, 16))],
)
def test_tokens_that_are_no_images_are_refused(tokens: NDArray[np.int64]) -> None:
    with pytest.raises(UserError, match="tokens"):
        a_palette(16).decode(tokens, 4)


def test_a_fit_finds_clusters_the_same_every_time_and_the_common_ones_first() -> None:
    random = np.random.default_rng(0)
    middles = np.array([[30, 40, 50], [200, 20, 90], [90, 220, 160]])
    pixels = np.concatenate(
        [
            (middle + random.integers(-4, 5, (count, 3))).astype(np.uint8)
            for middle, count in zip(middles, (300, 900, 600), strict=True)
        ]
    )
    palette = Palette.fit(pixels, colors=3, seed=1)
    shown = palette.decode(np.arange(3)[:, None], 1).reshape(3, 3).astype(int)
    assert np.abs(shown - middles[[1, 2, 0]]).max() <= 1
    assert Palette.fit(pixels[::-1], colors=3, seed=1).digest == palette.digest


def test_too_few_colours_are_exact_and_padding_is_never_used() -> None:
    pixels = np.array([[9, 9, 9], [9, 9, 9], [1, 2, 3], [250, 0, 8]], np.uint8)
    palette = Palette.fit(pixels, colors=8)
    assert palette.colors == 8
    assert "3 distinct colours" in palette.note
    tokens = palette.encode(noise(1, 16))
    assert int(tokens.max()) <= 2
    image = pixels.reshape(1, 2, 2, 3)
    assert np.array_equal(palette.decode(palette.encode(image), 2), image)


def test_the_hugging_face_file_is_plain_json(tmp_path: Path) -> None:
    a_palette(4).save(tmp_path / "preprocessor_config.json")
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert np.allclose(written["clusters"], a_palette(4).centers)
