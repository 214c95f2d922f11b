"""Configuration: what is refused, and what the user is told."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from igpt.config import Strict, dump_yaml, load, override, read_yaml
from igpt.errors import UserError


class Inner(Strict):
    learning_rate: float = Field(default=0.003, gt=0)
    kind: Literal["adam", "sgd"] = "adam"


class Outer(Strict):
    steps: int = Field(gt=0)
    name: str | None = None
    optimizer: Inner = Inner()
    layers: Literal["all"] | list[int] = "all"
    workers: int | Inner = 1
    global_: int = Field(default=1, alias="global")


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(Outer, text, "job.yaml", overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_numbers_are_those_of_yaml_1_2() -> None:
    data = read_yaml("a: 3e-3\nb: no\nc: 010\nd:\ne: 2020-01-01\nf: 0x10\ng: -.5\nh: on", "x").data
    assert data == {
        "a": 0.003,
        "b": "no",
        "c": 10,
        "d": None,
        "e": "2020-01-01",
        "f": 16,
        "g": -0.5,
        "h": "on",
    }


def test_an_unknown_key_names_its_line_and_the_nearest_key() -> None:
    text = refusal("steps: 3\noptimizer:\n  learning_rat: 1.0\n")
    assert "job.yaml, line 3" in text
    assert "'optimizer.learning_rat'" in text
    assert 'did you mean "learning_rate"?' in text


def test_a_wrong_type_names_its_line_and_what_was_given() -> None:
    assert "job.yaml, line 1: steps: input should be a valid integer" in refusal("steps: ten")


def test_text_never_becomes_a_number_and_truth_never_one() -> None:
    assert "valid integer" in refusal('steps: "10"')
    assert "valid integer" in refusal("steps: true")


def test_a_missing_key_is_named() -> None:
    assert "'steps' is missing" in refusal("name: a")


def test_a_key_with_dashes_is_unknown_and_the_one_with_underscores_is_offered() -> None:
    text = refusal("steps: 1\noptimizer:\n  learning-rate: 1.0\n", "workers.learning-rate=1.0")
    for place, key in (
        ("job.yaml, line 3", "optimizer.learning-rate"),
        ("override workers.learning-rate=1.0", "workers.learning-rate"),
    ):
        assert f'{place}: unknown key {key!r}; did you mean "learning_rate"?' in text


ODD_KEYS = (
    "a-b|a b|'[a]'|list[int]|(a, b)|a.b|''|'-'|str|int|function-x|"
    "1|1.50|010|true|~|2020-01-01|<<|'1'"
)


@pytest.mark.parametrize("written", ODD_KEYS.split("|"))
def test_whatever_an_unknown_key_looks_like_it_is_named_as_written(written: str) -> None:
    text = refusal(f"steps: 1\n? {written}\n: 5\noptimizer:\n  ? {written}\n  : 5")
    key = written.strip("'")
    assert f"job.yaml, line 2: unknown key {key!r}" in text
    assert f"job.yaml, line 5: unknown key {f'optimizer.{key}'!r}" in text


@pytest.mark.parametrize("key", ["[a, b]", "{a: b}", "!!binary aGk=", "!!timestamp 2020-01-01"])
def test_what_is_no_text_is_refused_as_a_key_with_its_line(key: str) -> None:
    assert "job.yaml, line 2" in refusal(f"steps: 1\n? {key}\n: 5")


def test_the_branches_of_a_union_are_nobodys_keys() -> None:
    text = refusal("steps: 1\nworkers: {learning_rate: -1, int: 2}\nlayers: [x]")
    assert "line 2: workers.learning_rate: input should be greater than 0" in text
    assert "line 2: unknown key 'workers.int'" in text
    assert "line 3: layers.0: input should be a valid integer" in text


def test_every_problem_is_reported_at_once() -> None:
    text = refusal("steps: -1\nnmae: x\noptimizer: {learning_rate: -3}")
    assert "line 1: steps" in text
    assert 'did you mean "name"?' in text
    assert "line 3: optimizer.learning_rate" in text


def test_an_override_is_named_where_it_is_wrong() -> None:
    text = refusal("steps: 1", "optimizer.learning_rate=-1")
    assert "override optimizer.learning_rate=-1" in text
    assert "greater than 0" in text


def test_an_override_reaches_into_sections_that_are_not_written() -> None:
    config = load(Outer, "steps: 1", "job.yaml", ["optimizer.learning_rate=3e-3", "layers=[1, 2]"])
    assert config.optimizer.learning_rate == 0.003
    assert config.layers == [1, 2]


@pytest.mark.parametrize("assignment", ["steps", "=3", "a..b=1", ".a=1"])
def test_what_is_not_an_assignment_is_refused(assignment: str) -> None:
    assert "is not an assignment" in refusal("steps: 1", assignment)


def test_an_override_leaves_the_document_as_it_was() -> None:
    document = read_yaml("optimizer: {kind: adam}", "x")
    override(document, ["optimizer.kind=sgd"])
    assert document.data == {"optimizer": {"kind": "adam"}}


def test_a_tag_that_would_run_code_is_refused_with_its_line() -> None:
    text = refusal("steps: 1\nname: !!python/object/apply:os.system [echo pwned]")
    assert "job.yaml, line 2" in text
    assert "no tags" in text


def test_a_key_written_twice_is_refused() -> None:
    assert "'steps' is written twice" in refusal("steps: 1\nsteps: 2")


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "repeats itself" in refusal("\n".join(lines))


@pytest.mark.parametrize(
    "text",
    [
        "steps: \x00",
        "steps: !!binary aGk=",
        "steps: !!timestamp 2020-01-01",
        "steps: !!set {a, b}",
        "steps: !!int abc",
        "steps: !!bool zz",
        "steps: !!float x",
        "steps: " + "9" * 5000,
        "steps: " + "[" * 2000,
    ],
)
def test_odd_yaml_is_a_users_mistake_and_no_bug(text: str) -> None:
    assert "job.yaml" in refusal(text)


def test_an_override_is_one_value_whatever_is_in_it() -> None:
    config = load(Outer, "steps: 1", "job.yaml", ["name=folder:/data/my #1 set"])
    assert config.name == "folder:/data/my #1 set"
    assert load(Outer, "steps: 1", "job.yaml", ["name=a\nsteps: 2"]).steps == 1


def test_what_an_override_replaced_is_not_blamed_on_the_file() -> None:
    text = refusal("steps: 1\nlayers: [1]", "layers=[1, x]")
    assert "override layers=[1, x]" in text


@pytest.mark.parametrize("text", ["- 1\n- 2", "just text", "a: [1, 2", "\tsteps: 1", "a: b: c"])
def test_what_is_not_keys_and_values_is_refused(text: str) -> None:
    assert "job.yaml" in refusal(text)


def test_an_alias_is_the_name_in_the_file() -> None:
    config = load(Outer, "steps: 1\nglobal: 7", "job.yaml")
    assert config.global_ == 7
    assert "global: 7" in dump_yaml(config)
    assert 'did you mean "global"?' in refusal("steps: 1\nglobale: 7")


@given(
    st.builds(
        Outer,
        steps=st.integers(1, 10**9),
        name=st.none() | st.text(max_size=20).filter(lambda text: "\x85" not in text),
        optimizer=st.builds(
            Inner, learning_rate=st.floats(1e-300, 1e300), kind=st.sampled_from(["adam", "sgd"])
        ),
        layers=st.just("all") | st.lists(st.integers(), max_size=4),
    )
)
def test_what_is_written_out_reads_back_equal(config: Outer) -> None:
    assert load(Outer, dump_yaml(config), "spec.yaml") == config
