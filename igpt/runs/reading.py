"""Reading the JSON of a record: what is not whole is named, never half believed."""

import json
from typing import Any

from igpt.errors import DataCorrupt
from igpt.storage import Store


def read_json(store: Store, key: str) -> dict[str, Any]:
    """The JSON object at `key`. Raises NotFound, or DataCorrupt where it is none."""
    content = store.get(key)
    try:
        body = json.loads(content)
    except ValueError as error:
        raise DataCorrupt(f"{store.uri}/{key} is damaged: {error}") from None
    if not isinstance(body, dict):
        raise DataCorrupt(f"{store.uri}/{key} is damaged: it holds no JSON object")
    return body
