"""`igpt-jobs submit JOB`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from igpt.cli.common import (
    ClusterOption,
    FollowOption,
    JsonOption,
    OverrideArguments,
    StoreOption,
    YesOption,
    facts_table,
    here,
    out,
    print_json,
    say,
    store_of,
)
from igpt.cli.common import confirm as ask
from igpt.cli.follow import follow, outcome
from igpt.clusters import Proposal, Submission, accept, load_cluster, propose, status
from igpt.clusters.submission import describe, rehearse
from igpt.config import override, parse, read_yaml_file
from igpt.errors import UserError
from igpt.jobs import Job, JobConfig, find_job
from igpt.jobs.recipes import find_recipe
from igpt.runs import find_run
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


AfterOption = Annotated[
    list[str] | None,
    typer.Option("--after", help="Start when this run has finished; may be given several times."),
]


@dataclass(frozen=True)
class Wishes:
    """The options that `submit` and `sweep` have in common."""

    cluster: str
    store: str | None
    name: str | None
    after: list[str]
    dry_run: bool
    follow: bool
    new: bool
    yes: bool
    as_json: bool


def command(
    job: Annotated[str, typer.Argument(help="A recipe: a path, or a name in jobs/.")],
    overrides: OverrideArguments = None,
    cluster: ClusterOption = "local",
    store: StoreOption = None,
    name: NameOption = None,
    after: AfterOption = None,
    dry_run: DryRunOption = False,
    follow: FollowOption = False,
    new: NewOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start a job on a cluster.

    Example: igpt-jobs submit pretrain data=data/cifar10-32 model.preset=igpt-s --follow
    """
    wishes = Wishes(cluster, store, name, after or [], dry_run, follow, new, yes, as_json)
    _, end = start("jobs", job, overrides or [], wishes)
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
    noun: str, recipe: str, overrides: list[str], wishes: Wishes
) -> tuple[Submission, Status | None]:
    """What `submit` and `sweep` have in common: the submission, and how it ended if followed."""
    folder = here()
    job, config = load_job(noun, recipe, overrides, folder)
    root = store_of(wishes.store)
    proposal = propose(
        root,
        job,
        config,
        load_cluster(wishes.cluster, folder),
        folder=folder,
        arguments=sys.argv,
        name=slug(Path(recipe).stem) or None if wishes.name is None else wishes.name,
        after=[find_run(root, wanted) for wanted in wishes.after],
        dry_run=wishes.dry_run,
    )
    if wishes.dry_run:
        submission = rehearse(proposal)
        if wishes.as_json:
            print_json(describe(submission))
        else:
            show_plan(submission)
        return submission, None
    if not wishes.yes and sys.stdin.isatty() and sys.stderr.isatty():
        confirm(proposal)
    submission = accept(proposal, new=wishes.new)
    if wishes.as_json and not wishes.follow:
        print_json(describe(submission))
    announce(submission)
    if not wishes.follow:
        return submission, None
    end = follow(submission.run)
    if wishes.as_json:
        print_json(describe(submission) | {"state": end.state, "reason": end.reason})
    else:
        say(outcome(submission.run, end))
    return submission, end


def confirm(proposal: Proposal) -> None:
    """Shows what the run will cost and asks; no is the end, and nothing was written."""
    made = proposal.forecast()
    say(f"{proposal.run.id}\n{facts_table(proposal.facts | made.facts | proposal.plan().facts)}")
    for warning in made.warnings:
        say(f"  ! {warning}")
    ask("Submit?", "not submitted", default=True)


def announce(submission: Submission) -> None:
    """Says which run it is, what it does, and how to watch it."""
    run = submission.run.id
    if submission.created:
        say(f"submitted {run}\n{facts_table(submission.facts | submission.plan.facts)}")
        say(f"  look at it: igpt-jobs watch {run}, igpt-jobs logs {run} -f")
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
