"""What the verbs share: options, opening the store, and where output goes.

With --json one document goes to standard output; messages for people always go to standard error.
"""

import json
import os
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from igpt.cli.streams import output
from igpt.cli.streams import say as say
from igpt.errors import UserError
from igpt.runs import Run, find_run
from igpt.storage import Store, open_store, resolve_store
from igpt.storage.files import explained

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Where runs and data live: a folder or s3://bucket/prefix. "
        "Default: IGPT_STORE, then igpt.yaml, then ./igpt-store.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ClusterOption = Annotated[
    str, typer.Option("--cluster", help="A cluster file: a path, or a name in clusters/.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
FollowOption = Annotated[
    bool, typer.Option("--follow", "-f", help="Stay and watch; Ctrl-C leaves the run alive.")
]
OverrideArguments = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides, e.g. optimizer.learning_rate=3e-3", show_default=False),
]
RunArgument = Annotated[str, typer.Argument(help="A run's name, or the beginning of it.")]


def store_of(option: str | None) -> Store:
    """The store that was asked for, settled by option, environment and igpt.yaml."""
    if option == "":
        raise UserError("--store is empty", expected="a folder or s3://bucket/prefix")
    uri, settings, origin = resolve_store(option, os.environ, here())
    if "://" not in uri:
        with explained("read", Path(uri)):
            is_file = Path(uri).exists() and not Path(uri).is_dir()
        if is_file:
            expected = "a folder, or a new name"
            raise UserError(f"the store {uri} ({origin}) is a file", expected=expected)
    # The supervisor and the workers inherit how to reach it; credentials stay in boto3's chain.
    os.environ.update(settings.to_environment())
    return open_store(uri, settings)


def run_of(wanted: str, store: str | None) -> Run:
    """The run that was asked for."""
    return find_run(store_of(store), wanted)


def here() -> Path:
    """Where relative paths begin. Raises UserError where that folder has been removed."""
    try:
        return Path.cwd()
    except OSError as error:
        raise UserError(
            f"the working directory cannot be used: {error.strerror}",
            mend="cd to a folder that is there",
        ) from None


def confirm(question: str, otherwise: str, *, default: bool) -> None:
    """Asks; no is the end, and Ctrl-C is no. `otherwise` says what has not been done."""
    try:
        if typer.confirm(question, default=default, err=True):
            return
        code = 0
    except typer.Abort:
        say("")  # the cursor stands behind the question
        code = 130
    say(otherwise)
    raise typer.Exit(code)


def out(text: str) -> None:
    """What was asked for, to standard output."""
    with output():
        print(text, flush=True)  # noqa: T201


def print_json(document: Any) -> None:
    """The one document of --json."""
    out(json.dumps(document, indent=1))


def console(*, stderr: bool = False) -> Console:
    """Where tables and bars go: in colour on a terminal that wants it, else plain lines."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty() and not plain
    return Console(stderr=stderr, force_terminal=terminal, no_color=plain, highlight=False)


def age(then: float, now: float | None = None) -> str:
    """`42 s`, `7 min`, `3 h`, `5 d`: how long ago."""
    seconds = max(0.0, (time.time() if now is None else now) - then)
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def facts_table(facts: dict[str, str]) -> str:
    """Facts as aligned lines; on a terminal long ones go on below where they begin."""
    width = max((len(key) for key in facts), default=0)
    columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else sys.maxsize
    indent = " " * (width + 4)
    lines = [
        textwrap.wrap(
            f"  {key:<{width}}  {value}",
            max(columns, width + 30),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=False,
        )
        for key, value in facts.items()
    ]
    return "\n".join(line.rstrip() for wrapped in lines for line in wrapped)
