"""What an examination found: one line of the doctor's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]
#: Stands for the names of all nodes.
EVERYWHERE = "all nodes"
_NAMED = 4  # nodes that a finding names


@dataclass(frozen=True)
class Finding:
    """One check, at one place or several."""

    check: str
    level: Level
    where: str  # nodes, `client`, or `all nodes`
    found: str
    mend: str = ""  # what to do


def named(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def grouped(
    check: str, level: Level, found: Mapping[str, str], mend: str | Mapping[str, str] = ""
) -> list[Finding]:
    """A finding for each different text; found: by node. mend: what to do, for all or by text."""
    places: dict[str, list[str]] = {}
    for name, text in found.items():
        places.setdefault(text, []).append(name)
    return [
        Finding(check, level, named(names), text, mend if isinstance(mend, str) else mend[text])
        for text, names in places.items()
    ]
