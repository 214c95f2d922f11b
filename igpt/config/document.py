"""Plain data from YAML, with the line of each key.

YAML is read by a safe loader with the scalar rules of YAML 1.2: `3e-3` is a number, `no` is text,
a date is text. Tags, repeated keys and runaway aliases are refused.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from igpt.errors import UserError

Location = tuple[str | int, ...]


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
