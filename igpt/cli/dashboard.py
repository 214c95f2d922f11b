"""`igpt-jobs dashboard RUN`."""

import socket
import webbrowser
from typing import Annotated

import typer

from igpt.cli.common import JsonOption, RunArgument, StoreOption, out, print_json, run_of, say
from igpt.clusters import status
from igpt.clusters.dashboard import PORT, Dashboard, read_dashboard, tunnel
from igpt.clusters.standing import cluster_of
from igpt.errors import NotFound, Unreachable
from igpt.runs import Run
from igpt.runs.state import RunState, Status

_ENDED = (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED)


def command(
    run: RunArgument,
    store: StoreOption = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The address of the Ray dashboard that shows a run, and how to reach it.

    Example: igpt-jobs dashboard pretrain-1a2b3c4d --open
    """
    found = run_of(run, store)
    now = status(found)
    dashboard = find_dashboard(found, now)
    address, needed = tunnel(dashboard)
    stale = now.state is not RunState.RUNNING and not (
        dashboard.through == "direct" and now.state.active  # it waits for room in that very Ray
    )
    if as_json:
        print_json(
            {
                "run": found.id,
                "state": now.state,
                "address": address,
                "command": needed,
                "host": dashboard.host,
                "port": dashboard.port,
                "path": dashboard.path,
                "through": dashboard.through,
                "login": dashboard.login,
                "time": dashboard.time,
                "stale": stale,
            }
        )
    else:
        if stale:
            say(f"{found.id} is {now.state}: what this shows may be over, or gone")
        if needed is not None:
            login = "" if dashboard.login else ", with your way into the cluster for LOGIN"
            say(f"on your own machine leave this running{login}, then open the address:")
            out(needed)
        out(address)
    if open_it:
        _open(address, needed)


def find_dashboard(run: Run, now: Status) -> Dashboard:
    """The dashboard of a run. Raises NotFound where it has none, or has none any more."""
    dashboard = read_dashboard(run)
    if dashboard is None:
        cluster = cluster_of(run)
        where = f" on cluster {cluster.kind}" if cluster else ""
        raise NotFound(
            f"run {run.id} has no dashboard of Ray{where}",
            mend=f"igpt-jobs watch {run.id} looks on without one; figures.tensorboard and "
            "figures.prometheus of the cluster file write its figures where others show them",
        )
    if dashboard.through == "ssh" and now.state in _ENDED:
        raise NotFound(
            f"run {run.id} is {now.state}, and its Ray on {dashboard.host} has ended with it",
            mend=f"igpt-jobs report {run.id} and igpt-jobs logs {run.id} show what it left",
        )
    return dashboard


def _open(address: str, needed: str | None) -> None:
    """Opens a browser. Raises Unreachable where the tunnel is not there."""
    if needed is not None:
        try:
            socket.create_connection(("127.0.0.1", PORT), timeout=2.0).close()
        except OSError:
            raise Unreachable(
                f"nothing answers at 127.0.0.1:{PORT}",
                expected="the tunnel to the node",
                mend=f"In another terminal: {needed}",
            ) from None
    if not webbrowser.open(address):
        say("no browser can be started here")
