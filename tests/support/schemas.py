"""The JSON of the command line against its schemas in docs/schemas/."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def schema(verb: str) -> dict[str, Any]:
    """The schema of what a verb prints."""
    read: dict[str, Any] = json.loads((SCHEMAS / f"{verb}.json").read_text())
    return read


def validated(verb: str, text: str) -> Any:
    """The one document in `text`; fails where it is not what the verb's schema says."""
    document = json.loads(text)
    Draft202012Validator(schema(verb)).validate(document)
    return document
