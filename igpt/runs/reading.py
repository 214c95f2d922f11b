"""Reading the JSON of a record: what is not whole is named, never half believed."""

import json
from typing import Any

from igpt.errors import DataCorrupt
from igpt.storage import Store


def read_json(store: Store, key: str) -> dict[str, Any]:
    """The JSON object at `key`. Raises NotFound, or DataCorrupt where it is none."""
    return _object(store.get(key), f"{store.uri}/{key}")


def read_json_lines(store: Store, key: str) -> list[dict[str, Any]]:
    """The JSON objects at `key`, one a line. Raises NotFound, or DataCorrupt, with the line."""
    lines = store.get(key).splitlines()
    return [
        _object(line, f"{store.uri}/{key}, line {number}") for number, line in enumerate(lines, 1)
    ]


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError as error:
        raise DataCorrupt(f"{where} is damaged: {error}") from None
    if not isinstance(body, dict):
        raise DataCorrupt(f"{where} is damaged: it holds no JSON object")
    return body
