"""In a job of Slurm, after its ranks: how the attempt ended, and whether the job is requeued.

    python -m igpt.clusters.slurm.after RUN_URI ATTEMPT EXIT_CODE_OF_SRUN

At the end of the batch script. It runs outside the step, and so also where the step was killed for
want of memory, or lost a node. What it decides it records; exit code 75 makes the script ask Slurm
to start the job again. IGPT_SLURM_JOB is what `scontrol show job` says of the job just now.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from igpt.clusters import memory
from igpt.clusters.exits import read_exits
from igpt.clusters.outcome import insist, settle
from igpt.clusters.slurm.backend import read_job
from igpt.clusters.slurm.client import parse_fields
from igpt.clusters.slurm.config import AFTER_SECONDS, SlurmCluster, seconds_of, slurm_at
from igpt.clusters.slurm.turn import (
    START_MARK,
    Turn,
    gone_nodes,
    hosts_of,
    meeting_key,
    open_attempt,
)
from igpt.errors import IgptError, NotFound, Unreachable
from igpt.jobs.references import newest_checkpoint
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers
from igpt.runs.failures import REQUEUE, FailureClass, RankExit, Verdict, classify
from igpt.runs.record import run_at

log = logging.getLogger("igpt")

#: A store that is away is waited for so long: the nodes are held meanwhile. The next start settles.
_PATIENCE_SECONDS = 600.0
#: The warning may come up to a minute before its time, as Slurm counts in minutes.
_EARLY_SECONDS = 75.0
#: So many attempts in a row without a new checkpoint, and there never will be one.
_FRUITLESS_LIMITS, _FRUITLESS_STOPS = 3, 10
#: What srun returns where a signal ended the ranks' parents before they could heed it.
_SIGNALLED = frozenset(128 + number for number in (signal.SIGTERM, signal.SIGUSR2))


def main(run_uri: str, submitted: int, code: int) -> int:
    """Settles the attempt of this start of the job; returns the job's exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # it is about to end by itself
    run = run_at(run_uri)
    turn = Turn.of_job(os.environ, submitted)
    job = parse_fields(os.environ.get("IGPT_SLURM_JOB", ""))
    try:
        return insist(partial(conclude, run, turn, job, code), _PATIENCE_SECONDS)
    except NotFound as gone:  # the run was deleted
        log.error("%s", gone)
        return 5
    except Unreachable as away:
        log.error("%s", away)
        return REQUEUE
    except IgptError as error:
        log.error("%s", error)
        return error.exit_code


def conclude(run: Run, turn: Turn, job: Mapping[str, str], code: int) -> int:
    """Settles the attempt and, where another follows, opens it; returns the job's exit code."""
    cluster = slurm_at(run, turn.submitted)
    attempt = attempt_of(run, turn)
    if attempt is None:
        if run.record.exists("result.json"):
            return 0
        log.error("attempt %d of run %s is not this job's", turn.submitted, run.id)
        return 6
    verdict = verdict_of(run, attempt, cluster, turn, code)
    if was_cancelled(job, turn) and verdict.outcome != "finished":
        run.event(ev.CANCEL_REQUESTED, writer="supervisor", attempt=attempt, by="scancel")
    if verdict.outcome == "stopped":
        limited = limit_is_near(run, attempt, cluster, job)
        if limited:
            verdict = Verdict("stopped", FailureClass.TIMEOUT, "the time limit was near; saved")
        if fruitless(run, attempt, _FRUITLESS_LIMITS if limited else _FRUITLESS_STOPS):
            reason = "attempt after attempt ends without a new checkpoint: raise `time`"
            verdict = Verdict("failed", FailureClass.USER_ERROR, reason)
    settled = settle(run, attempt, verdict, cluster.retries, cluster.notify, patience=0.0)
    if not settled.again:
        return exit_code(settled.kind, verdict)
    open_attempt(run, Turn(turn.job, turn.restarts + 1, turn.submitted))
    return REQUEUE


def attempt_of(run: Run, turn: Turn) -> int | None:
    """The attempt of this start of the job; None where the run is another's."""
    last = max(attempt_numbers(run.record))
    found = read_job(run, last)
    if found is None and last == turn.submitted:
        return last  # the step never got as far as the record
    if found is not None and (found["job"], found["restarts"]) == (turn.job, turn.restarts):
        return last
    return None


def verdict_of(run: Run, attempt: int, cluster: SlurmCluster, turn: Turn, code: int) -> Verdict:
    """The verdict from what every node said, from Slurm's own words, and from who said nothing."""
    if run.record.exists("result.json"):
        return Verdict("finished")
    said = [read_exits(run, attempt, node) for node in range(cluster.nodes)]
    exits: Sequence[RankExit] = [one for own in said for one in own or ()]
    missing = [str(node) for node, own in enumerate(said) if own is None]
    if not missing:
        return classify(exits)
    words = step_words(Path(os.environ["IGPT_FOLDER"]), turn)
    if (out := memory.slurm_out_of_memory("", words)) is not None:
        return Verdict("failed", FailureClass.OUT_OF_MEMORY, out.reason)
    if gone := gone_nodes(hosts_of(os.environ.get("SLURM_JOB_NODELIST", ""))):
        return Verdict("failed", FailureClass.NODE, f"node {', '.join(gone)} is gone")
    if told := [one for one in exits if one.code != 0]:
        return classify(told)
    if code == 6:
        return Verdict("superseded", reason="a newer attempt owns the run")
    if not run.record.exists(meeting_key(attempt)):
        if code in {0, *_SIGNALLED}:
            return Verdict("stopped", FailureClass.PREEMPTED, "stopped while it was starting")
        last = words.strip().splitlines()[-1:] or ["no output"]
        reason = f"the ranks could not be started (srun: {code}): {last[0]}"
        return Verdict("failed", FailureClass.CRASH, reason)
    reason = f"node {', '.join(missing)} of the job gave no account (srun: {code})"
    return Verdict("failed", FailureClass.NODE, reason)


def was_cancelled(job: Mapping[str, str], turn: Turn) -> bool:
    """Whether somebody has ended the job by scancel: it would be a pity to bring it back.

    Then Slurm is about to complete a job that has time left and that it has not restarted.
    """
    left = seconds_left(job)
    return (
        job.get("JobState") in ("COMPLETING", "CANCELLED")
        and job.get("EndTime", "Unknown") != "Unknown"
        and job.get("Restarts") == str(turn.restarts)
        and (left is None or left > 0)
    )


def limit_is_near(run: Run, attempt: int, cluster: SlurmCluster, job: Mapping[str, str]) -> bool:
    """Whether it was the time limit that stopped the ranks, by Slurm's clock or else by ours."""
    left = seconds_left(job)
    if left is None:
        claims = [claim.time for claim in run.claims() if claim.attempt == attempt]
        left = seconds_of(cluster.time) - (time.time() - claims[0]) if claims else None
    return left is not None and left < cluster.grace_seconds + AFTER_SECONDS + _EARLY_SECONDS


def seconds_left(job: Mapping[str, str]) -> float | None:
    """Seconds to the job's time limit; None where there is none, or it is not known."""
    try:
        return seconds_of(job["TimeLimit"]) - seconds_of(job["RunTime"])
    except (KeyError, ValueError):
        return None


def fruitless(run: Run, attempt: int, allowed: int) -> bool:
    """Whether so many attempts in a row, this one the last, have made no new checkpoint."""
    submitted = [event.attempt or 0 for event in run.events({ev.SUBMITTED})]
    claims = [claim for claim in run.claims() if claim.attempt >= max(submitted, default=0)]
    if not claims or claims[-1].attempt != attempt:
        return False
    best = newest_checkpoint(run)
    start = claims[-1].start_step
    latest = [claim.start_step for claim in claims[-allowed:]]
    return (best[0] if best else 0) <= start and latest == [start] * allowed


def step_words(folder: Path, turn: Turn) -> str:
    """What Slurm and the ranks' parents have written into the shared folder since this start."""
    words = ""
    for path in sorted(folder.glob(f"{turn.job}_*_log.err")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65_536))
            text = file.read().decode(errors="replace")
        _, mark, since = text.rpartition(f"{START_MARK} {turn.launch}\n")
        words += since if mark else ""
    return words


def exit_code(kind: str, verdict: Verdict) -> int:
    """The job's exit code, for Slurm's accounting and for jobs that wait for this one."""
    if kind == ev.FINISHED:
        return 0
    if kind == ev.CANCELLED:
        return 5
    if kind == ev.SUPERSEDED:
        return 6
    return 2 if verdict.failure is FailureClass.USER_ERROR else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
