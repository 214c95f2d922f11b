"""Strict configuration: YAML with line numbers, dotted overrides, errors that say where and how.

A configuration is a frozen pydantic model. `load` reads one from YAML text and overrides; whatever
is wrong is reported with the file and line (or the override), what was expected and the nearest
right name, as one `UserError` that lists every problem.

YAML is read by a safe loader with the scalar rules of YAML 1.2: `3e-3` is a number, `no` is text,
a date is text. Tags, repeated keys and runaway aliases are refused.
"""

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from igpt.errors import UserError

Location = tuple[str | int, ...]


class Strict(BaseModel):
    """Base of all configuration: unknown keys are refused, values are never bent into a type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class WithheldValue(ValueError):
    """Raised by a validator for a value that no message may show."""


Model = TypeVar("Model", bound=BaseModel)


def nearest(name: str, choices: Iterable[str]) -> str:
    """'; did you mean "x"?' for the choice closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


@dataclass
class Document:
    """Plain data read from YAML, and where each key was written."""

    data: dict[str, Any]
    source: str
    lines: dict[Location, int] = field(default_factory=dict)
    overrides: dict[Location, str] = field(default_factory=dict)

    def where(self, location: Location, *, withheld: bool = False) -> str:
        """The override or file and line that wrote `location`, or the closest key around it.

        withheld: what the override assigns is not shown.
        """
        for end in range(len(location), -1, -1):
            if location[:end] in self.overrides:
                given = self.overrides[location[:end]]
                return f"override {given.partition('=')[0] if withheld else given}"
            if location[:end] in self.lines:
                return f"{self.source}, line {self.lines[location[:end]]}"
        return self.source


def read_yaml(text: str, source: str) -> Document:
    """The mapping in `text`; `source` names it in errors.

    Raises UserError for what is not YAML, not a mapping, a tag, a repeated key or an alias bomb.
    """
    document = Document({}, source)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return document
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{source} holds {_kind(node)}", expected="keys and values")
        _locate(node, (), document, [0])
        document.data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{source}, line {mark.line + 1}" if mark else source
        raise UserError(
            f"{at}: {error.problem or error.context}",
            expected="plain YAML: mappings, lists, numbers and text, no tags",
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {error}") from None
    except UserError:
        raise
    except (ValueError, KeyError) as error:  # a tag on what does not fit it
        raise UserError(f"{source}: {error}", expected="plain YAML, no tags") from None
    except RecursionError:
        raise UserError(f"{source} is nested too deeply", expected="plain YAML") from None
    finally:
        if loader is not None:
            loader.dispose()
    return document


def read_yaml_file(path: Path) -> Document:
    """The mapping in a file. Raises UserError where it cannot be read."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def override(document: Document, assignments: Sequence[str]) -> Document:
    """The document with `a.b=value` assignments applied; values are read as YAML."""
    data = json.loads(json.dumps(document.data))
    overrides = dict(document.overrides)
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        keys = tuple(path.split("."))
        if not equals or not all(keys) or any(key != key.strip() for key in keys):
            raise UserError(
                f"override {assignment!r} is not an assignment",
                expected="key=value with dotted keys, for example optimizer.learning_rate=3e-3",
            )
        target = data
        for key in keys[:-1]:
            inner = target.get(key)
            if not isinstance(inner, dict):  # a preset or nothing: the override opens it
                inner = target[key] = {}
            target = inner
        target[keys[-1]] = _value(value, assignment)
        overrides[keys] = assignment
    # What an override has replaced no longer stands where the file has it.
    lines = {
        location: line
        for location, line in document.lines.items()
        if not any(location[: len(keys)] == keys for keys in overrides)
    }
    return Document(data, document.source, lines, overrides)


def _value(text: str, assignment: str) -> Any:
    """The value of an override: one YAML value, all of the text."""
    if "\n" in text or " #" in text:
        # YAML would take the rest for a comment, or for keys of its own.
        return text
    return read_yaml(f"value: {text}", f"override {assignment}").data["value"]


def parse(model: type[Model], document: Document) -> Model:
    """The document as a `model`. Raises one UserError that lists every problem."""
    try:
        # By way of JSON: there a list may fill a tuple, and yet text never becomes a number.
        return model.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        problems = [_explain(model, document, problem) for problem in error.errors()]
        raise UserError("\n".join(problems)) from None


def load(model: type[Model], text: str, source: str, assignments: Sequence[str] = ()) -> Model:
    """`read_yaml`, `override` and `parse` in one."""
    return parse(model, override(read_yaml(text, source), assignments))


def plain(model: BaseModel) -> dict[str, Any]:
    """The model as plain data, every default written out, under the names of its file."""
    return model.model_dump(mode="json", by_alias=True)


def dump_yaml(model: BaseModel) -> str:
    """The model as YAML, every default written out, keys in the order of the fields."""
    return yaml.safe_dump(plain(model), sort_keys=False, allow_unicode=True)


def _explain(model: type[BaseModel], document: Document, problem: Any) -> str:
    location = _written(problem, document)
    key = ".".join(str(part) for part in location)
    withheld = isinstance(problem.get("ctx", {}).get("error"), WithheldValue)
    where = document.where(location, withheld=withheld)
    if problem["type"] == "extra_forbidden":
        known = _fields(model, location[:-1])
        name = str(problem["loc"][-1]).replace("-", "_")
        hint = nearest(name, known) or f"; known keys: {', '.join(known)}"
        return f"{where}: unknown key {key!r}{hint}"
    if problem["type"] == "missing":
        return f"{where}: {key!r} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = problem.get("input")
    hidden = withheld or isinstance(value, dict | list)
    shown = "" if hidden else f" (got {json.dumps(value, default=str)})"
    return f"{where}: {key or 'the whole'}: {message}{shown}"


def _written(problem: Any, document: Document) -> Location:
    """The place of a problem in the document.

    Pydantic's also names the branches of unions, which no user has written.
    """
    location: Location = ()
    value: Any = document.data
    for part in problem["loc"]:
        keys = range(len(value)) if isinstance(value, list) else value
        if isinstance(value, dict | list) and part in keys:
            value = value[part]
            location += (part,)
    return (*location, problem["loc"][-1]) if problem["type"] == "missing" else location


def _fields(model: Any, location: Location) -> list[str]:
    """The keys a model takes at `location`."""
    models = [model]
    for part in location:
        inner: list[Any] = []
        for candidate in models:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                info = candidate.model_fields.get(str(part))
                inner += _alternatives(info.annotation) if info else []
        models = inner
    found = [m for m in models if isinstance(m, type) and issubclass(m, BaseModel)]
    return [info.alias or name for m in found for name, info in m.model_fields.items()]


def _alternatives(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (
        typing.Union,
        types.UnionType,
        typing.Annotated,
        list,
        tuple,
    ):
        return [a for argument in typing.get_args(annotation) for a in _alternatives(argument)]
    return [annotation]


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _locate(node: yaml.Node, location: Location, document: Document, count: list[int]) -> None:
    """Notes the line of each key, and refuses what would be expanded without end."""
    count[0] += 1
    _check_tag(node)
    if count[0] > 20_000 or len(location) > 40:
        raise UserError(f"{document.source} repeats itself through aliases", expected="plain YAML")
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            _check_tag(key)
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in seen:
                raise UserError(f"{document.source}, line {line}: key {name!r} is written twice")
            seen.add(name)
            document.lines[(*location, name)] = line
            _locate(value, (*location, name), document, count)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            document.lines[(*location, number)] = item.start_mark.line + 1
            _locate(item, (*location, number), document, count)


def _check_tag(node: yaml.Node) -> None:
    if node.tag not in _TAGS:
        raise yaml.MarkedYAMLError(
            problem=f"the tag {node.tag} is not allowed", problem_mark=node.start_mark
        )


_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map")
}


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's scalars."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (types-PyYAML has it so)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # YAML 1.1 would read 010 as eight.
    text = str(loader.construct_scalar(node))
    try:
        return int(text, 16) if text.lower().startswith("0x") else int(text)
    except ValueError as error:  # an explicit !!int on something else, or thousands of digits
        raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _construct_map(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
    # A key is text, as in JSON, also where a value would be a number.
    return {
        str(loader.construct_scalar(key)): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_map)
