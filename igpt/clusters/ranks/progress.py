"""What the ranks of a node say of their progress, and who is shown it while they run."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from igpt.errors import IgptError
from igpt.jobs.context import progress_file

log = logging.getLogger("igpt")

#: Is given a rank and what it said last of its progress.
Show = Callable[[int, Mapping[str, Any]], None]


def read_progress(scratch: Path, rank: int) -> dict[str, Any]:
    """What a rank said last of its progress; nothing where it has said nothing yet."""
    try:
        body: dict[str, Any] = json.loads(progress_file(scratch, rank).read_text())
    except FileNotFoundError:
        return {}
    return body


def together(*shows: Show) -> Show:
    """Shows all of these; a failure of one keeps nothing from the others.

    What it returns raises one IgptError of all that failed.
    """

    def show(rank: int, progress: Mapping[str, Any]) -> None:
        causes = []
        for one in shows:
            try:
                one(rank, progress)
            except Exception as error:
                causes.append(_cause(error))
        if causes:
            raise IgptError("; ".join(causes))

    return show


class Onlooker:
    """Shows the progress of some ranks, each time they have moved on.

    What goes wrong in `show` is logged, once for each cause: it must not end the ranks.
    """

    def __init__(self, scratch: Path, ranks: range, show: Show) -> None:
        self._scratch = scratch
        self._ranks = ranks
        self._show = show
        self._shown: dict[int, dict[str, Any]] = {}
        self._causes: set[str] = set()

    def look(self) -> None:
        """Shows what is new."""
        for rank in self._ranks:
            progress = read_progress(self._scratch, rank)
            if not progress or progress == self._shown.get(rank):
                continue
            try:
                self._show(rank, progress)
                self._shown[rank] = progress
            except Exception as error:
                cause = _cause(error)
                if cause not in self._causes:
                    self._causes.add(cause)
                    log.warning("the figures of rank %d cannot be shown: %s", rank, cause)


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, IgptError) else f"{type(error).__name__}: {error}"
