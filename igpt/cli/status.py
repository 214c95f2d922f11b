"""`igpt-jobs status RUN`."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from igpt.cli.common import JsonOption, RunArgument, StoreOption, age, out, print_json, run_of
from igpt.cli.follow import follow
from igpt.cli.look import last_checkpoint
from igpt.clusters import pursue_cancel
from igpt.jobs.context import progress_line
from igpt.jobs.estimate import counted
from igpt.runs import Run
from igpt.runs.state import Status


def command(
    run: RunArgument,
    store: StoreOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """How a run stands, why, and what to do. With --wait, exits as the run does.

    Example: igpt-jobs status pretrain-1a2b3c4d
    """
    found = run_of(run, store)
    end = follow(found) if wait else pursue_cancel(found)
    body = summary(found, end)
    if as_json:
        print_json(body)
    else:
        out(text(body))
    raise typer.Exit(end.exit_code if wait else 0)


def summary(run: Run, now: Status) -> dict[str, Any]:
    """Everything `status` shows, as plain data."""
    claims = run.claims()
    saved = last_checkpoint(run, claims)
    heartbeat = run.heartbeat()
    spec = run.spec()
    return {
        "run": run.id,
        "uri": run.uri,
        "job": spec.job,
        "state": now.state,
        "reason": now.reason,
        "next": now.next,
        "progress": heartbeat.progress if heartbeat else {},
        "heartbeat": heartbeat.time if heartbeat else None,
        "attempts": [
            {"attempt": one.attempt, "start_step": one.start_step, "workers": one.workers}
            for one in claims
        ],
        "last_checkpoint": asdict(saved) if saved else None,
        "result": run.result(),
    }


def text(body: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [f"{body['run']}  {body['state']}" + (f": {body['reason']}" if body["reason"] else "")]
    progress = body["progress"]
    if progress.get("total"):
        lines.append(f"  progress    {progress_line(progress)}")
    if body["attempts"]:
        last = body["attempts"][-1]
        lines.append(
            f"  attempt     {last['attempt']}, from step {last['start_step']:,}, "
            + counted(last["workers"], "worker")
        )
    if body["last_checkpoint"]:
        saved = body["last_checkpoint"]
        lines.append(f"  checkpoint  step {saved['step']:,}, {age(saved['time'])} ago")
    lines.append(f"  record      {body['uri']}")
    if body["next"]:
        lines.append(f"  next        {body['next']}")
    return "\n".join(lines)
