"""Documents as frozen pydantic models, with dotted overrides and errors that say where and how."""

import difflib
import json
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from igpt.config.document import Document, Location, read_yaml
from igpt.errors import UserError


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
