"""The index: read strictly, and what it can tell without the data."""

import json
import math
from pathlib import Path

import pytest

from igpt.data import Index, open_dataset, write_shards
from igpt.data.index import parse_index, write_index
from igpt.errors import DataCorrupt, NotFound
from tests.data.examples import a_palette, a_source


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return write_shards(a_source(), tmp_path / "set", resolution=8, palette=a_palette())


def test_an_index_survives_its_file(index: Index) -> None:
    again, digest = parse_index(write_index(index), "here")
    assert again == index
    assert len(digest) == 64


def test_the_unigram_entropy_is_that_of_smoothed_counts(index: Index) -> None:
    splits = {
        "train": index.splits["train"].model_copy(update={"token_counts": (3, 0, 0, 4)}),
        "validation": index.splits["validation"].model_copy(update={"token_counts": (1, 1, 0, 0)}),
    }
    small = index.model_copy(update={"splits": splits})
    expected = -(math.log(4 / 11) + math.log(1 / 11)) / 2
    assert small.unigram_entropy() == pytest.approx(expected)
    assert small.unigram_entropy("train") == pytest.approx(
        -(3 * math.log(4 / 11) + 4 * math.log(5 / 11)) / 7
    )


def test_uniform_colours_have_the_entropy_of_the_vocabulary(index: Index) -> None:
    even = {
        name: split.model_copy(update={"token_counts": (9,) * 16})
        for name, split in index.splits.items()
    }
    assert index.model_copy(update={"splits": even}).unigram_entropy() == pytest.approx(
        math.log(16)
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "version"),
        ({"stride": "4096"}, "stride"),
        ({"extra": 1}, "extra"),
        ({"colors": None}, "colors"),
    ],
)
def test_an_index_of_another_kind_is_refused(
    index: Index, change: dict[str, object], problem: str
) -> None:
    content = json.loads(write_index(index)) | change
    with pytest.raises(DataCorrupt, match=f"not an index of this version: {problem}"):
        parse_index(json.dumps(content).encode(), "here")


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(DataCorrupt, match="here"):
        parse_index(b"\x80{", "here")


def test_a_split_that_there_is_not_names_those_that_there_are(index: Index) -> None:
    with pytest.raises(NotFound, match="train, validation, test"):
        index.split("val")


def test_no_data_set_and_an_unfinished_one_are_told_apart(index: Index, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no data set"):
        open_dataset(tmp_path / "nothing")
    (tmp_path / "set/index.json").unlink()
    with pytest.raises(NotFound, match="not finished"):
        open_dataset(tmp_path / "set")
