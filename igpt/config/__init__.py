"""Strict configuration: YAML with line numbers, dotted overrides, errors that say where and how.

A configuration is a frozen pydantic model. `load` reads one from YAML text and overrides; whatever
is wrong is reported with the file and line (or the override), what was expected and the nearest
right name, as one `UserError` that lists every problem.
"""

from igpt.config.document import Document, Location, read_yaml, read_yaml_file
from igpt.config.model import (
    Strict,
    WithheldValue,
    dump_yaml,
    load,
    nearest,
    override,
    parse,
    plain,
)

__all__ = [
    "Document",
    "Location",
    "Strict",
    "WithheldValue",
    "dump_yaml",
    "load",
    "nearest",
    "override",
    "parse",
    "plain",
    "read_yaml",
    "read_yaml_file",
]
