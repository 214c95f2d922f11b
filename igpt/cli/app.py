"""The root of the command line: finds a verb's module, and turns errors into exit codes.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 3 the cluster or the store cannot be
reached, 4 not found, 5 cancelled, 6 stalled or superseded, 130 interrupted.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from igpt.cli import streams
from igpt.errors import IgptError, UserError

#: The verbs in the order of help, each with the line that help shows. A verb's module is
#: `igpt.cli.<verb>`, with a function `command`.
VERBS = {
    "quickstart": "See the whole study on this machine, in a few minutes.",
    "init": "Write the recipes (jobs/, clusters/, sweeps/) here, to edit.",
    "plan": "What a job will cost on a cluster: memory, disk, hours.",
    "doctor": "Is a cluster fit for a run? What is not, and what to do.",
    "submit": "Start a job on a cluster.",
    "sweep": "Start a sweep: many fits of one question.",
    "list": "The runs of a store.",
    "status": "How a run stands, why, and what to do.",
    "watch": "Look on while runs work.",
    "dashboard": "Where Ray's dashboard shows a run.",
    "logs": "What a run's workers print.",
    "cancel": "Stop a run; its checkpoints stay.",
    "resume": "Go on with a run from its last checkpoint.",
    "delete": "Remove a run and all it made.",
    "report": "One HTML page of a run and its probes.",
}


class Verbs(TyperGroup):
    """The verbs, each imported when it is called and not to print the list of all."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """All verbs, in the order of help."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb; while help is printed, only its name and its line."""
        if cmd_name not in VERBS:
            from igpt.config import nearest  # costs more than all of --help

            hint = nearest(cmd_name, VERBS)
            raise UserError(f"there is no verb {cmd_name!r}{hint}", mend="igpt-jobs --help")
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        if self._listing:
            app.command(cmd_name, help=VERBS[cmd_name])(_nothing)
        else:
            command = import_module(f"igpt.cli.{cmd_name}").command
            app.command(cmd_name, no_args_is_help=False)(command)
        return typer.main.get_command(app)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The list of verbs, without importing any."""
        self._listing = True
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        """Runs a verb. Errors of ours become one paragraph and their exit code."""
        try:
            return super().invoke(ctx)
        except IgptError as error:
            raise _ended(error) from None
        except (KeyboardInterrupt, typer.Abort):
            raise typer.Exit(130) from None
        except BrokenPipeError:  # as in `logs | head`: whoever reads has seen enough
            streams.silence(sys.stdout)
            raise typer.Exit(0) from None
        except OSError as error:
            if (explained := _explained(error)) is None:
                raise
            raise _ended(explained) from None


def _ended(error: IgptError) -> typer.Exit:
    """Says what is wrong; the exit of its class."""
    streams.say(f"igpt-jobs: {error}")
    return typer.Exit(error.exit_code)


def _explained(error: OSError) -> IgptError | None:
    """What the system refused, for people; None where it names no path."""
    from igpt.storage.files import explained  # more than all of --help

    if not isinstance(error.filename, str | os.PathLike):
        return None
    try:
        with explained("used", Path(error.filename)):
            raise error
    except IgptError as found:
        return found


def _nothing() -> None:
    """Stands for a verb in the list of all."""


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(version("igpt-jobs"))  # noqa: T201
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """The whole Image GPT study on a cluster: shards, pretraining, linear probes, report.

    Try `igpt-jobs quickstart`, then `igpt-jobs init` and `igpt-jobs submit pretrain --dry-run`.
    """


def main() -> None:
    """The entry point of the command."""
    streams.open_all()
    app(prog_name="igpt-jobs")
