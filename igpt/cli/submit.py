"""`igpt-jobs submit JOB`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from igpt.cli.common import (
    ClusterOption,
    FollowOption,
    JsonOption,
    OverrideArguments,
    StoreOption,
    facts_table,
    here,
    out,
    print_json,
    say,
    store_of,
)
from igpt.cli.follow import follow, outcome
from igpt.clusters import Submission, load_cluster, status, submit
from igpt.clusters.submission import describe
from igpt.config import override, parse, read_yaml_file
from igpt.errors import UserError
from igpt.jobs import Job, JobConfig, find_job
from igpt.jobs.recipes import find_recipe
from igpt.runs.identity import slug
from igpt.runs.state import Status

NameOption = Annotated[
    str | None, typer.Option("--name", help="The run's name; default: the job's.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, show what would run, start nothing.")
]
NewOption = Annotated[
    bool, typer.Option("--new", help="Another run, also where the same work exists already.")
]


def command(
    job: Annotated[str, typer.Argument(help="A recipe: a path, or a name in jobs/.")],
    overrides: OverrideArguments = None,
    cluster: ClusterOption = "local",
    store: StoreOption = None,
    name: NameOption = None,
    dry_run: DryRunOption = False,
    follow: FollowOption = False,
    new: NewOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start a job on a cluster.

    Example: igpt-jobs submit pretrain data=data/cifar10-32 model.preset=igpt-s --follow
    """
    _, end = start(
        "jobs", job, overrides or [], cluster, store, name, dry_run, follow, new, as_json
    )
    raise typer.Exit(end.exit_code if end else 0)


def load_job(noun: str, recipe: str, overrides: list[str], folder: Path) -> tuple[Job, JobConfig]:
    """The job of a recipe and its configuration, overrides applied. Raises UserError."""
    document = override(read_yaml_file(find_recipe(noun, recipe, folder)), overrides)
    kind = document.data.get("job")
    if not isinstance(kind, str):
        raise UserError(
            f"{document.source}: 'job' is missing",
            expected="job: and the name of a job, as in the recipes of igpt-jobs init",
        )
    job = find_job(kind)
    return job, parse(job.config, document)


def start(
    noun: str,
    recipe: str,
    overrides: list[str],
    cluster: str,
    store: str | None,
    name: str | None,
    dry_run: bool,
    following: bool,
    new: bool,
    as_json: bool,
) -> tuple[Submission, Status | None]:
    """What `submit` and `sweep` have in common: the submission, and how it ended if followed."""
    folder = here()
    job, config = load_job(noun, recipe, overrides, folder)
    submission = submit(
        store_of(store),
        job,
        config,
        load_cluster(cluster, folder),
        folder=folder,
        arguments=sys.argv,
        name=name or slug(Path(recipe).stem),
        new=new,
        dry_run=dry_run,
    )
    if as_json and (dry_run or not following):
        print_json(describe(submission))
    if dry_run:
        if not as_json:
            show_plan(submission)
        return submission, None
    announce(submission)
    if not following:
        return submission, None
    end = follow(submission.run)
    if as_json:
        print_json(describe(submission) | {"state": end.state, "reason": end.reason})
    else:
        say(outcome(submission.run, end))
    return submission, end


def announce(submission: Submission) -> None:
    """Says which run it is, what it does, and how to watch it."""
    run = submission.run.id
    if submission.created:
        say(f"submitted {run}\n{facts_table(submission.facts | submission.plan.facts)}")
        say(f"  watch it: igpt-jobs status {run}, igpt-jobs logs {run} -f")
        return
    now = status(submission.run)
    say(f"{run} does this very work already, and is {now.state}; --new starts another")
    if now.next:
        say(now.next)


def show_plan(submission: Submission) -> None:
    """The plan of a dry run."""
    out(f"would submit {submission.run.id}")
    out(facts_table(submission.facts | submission.plan.facts))
    out(f"\n{submission.plan.text}")
