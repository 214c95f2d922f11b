"""In a job of Slurm, after its ranks: how the attempt ended, and whether the job is requeued.

    python -m igpt.clusters.slurm.after RUN_URI ATTEMPT EXIT_CODE_OF_SRUN

At the end of the batch script. It runs outside the step, and so also where the step was killed for
want of memory, or lost a node. What it decides it records; exit code 75 makes the script ask Slurm
to start the job again.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from igpt.clusters import memory
from igpt.clusters.files import cluster_at
from igpt.clusters.outcome import insist, settle
from igpt.clusters.slurm.backend import read_job
from igpt.clusters.slurm.config import SlurmCluster, seconds_of
from igpt.clusters.slurm.node import meeting_key, read_exits
from igpt.clusters.slurm.place import job_folder
from igpt.clusters.slurm.turn import Turn, nodes, open_attempt
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers
from igpt.runs.failures import REQUEUE, FailureClass, RankExit, Verdict, classify
from igpt.runs.record import open_run
from igpt.storage import open_store

log = logging.getLogger("igpt")

#: The warning may come up to a minute before its time, as Slurm counts in minutes.
_EARLY_SECONDS = 75.0
#: So many time limits in a row without a new checkpoint, and it never will.
_FRUITLESS = 3


def main(run_uri: str, submitted: int, code: int) -> int:
    """Settles the attempt of this start of the job; returns the job's exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # it is about to end by itself
    root_uri, _, identifier = run_uri.rpartition("/runs/")
    run = open_run(open_store(root_uri), identifier)
    turn = Turn.of_job(os.environ, submitted)
    cluster = insist(partial(cluster_at, run, submitted))
    assert isinstance(cluster, SlurmCluster)
    attempt = insist(partial(attempt_of, run, turn))
    if attempt is None:
        log.error("attempt %d of run %s is not this job's", submitted, run.id)
        return 6
    began = _began(run, attempt)
    verdict = verdict_of(run, attempt, cluster, turn, code)
    if verdict.outcome == "stopped" and _limit_is_near(cluster, began):
        verdict = Verdict("stopped", FailureClass.TIMEOUT, "the time limit was near; saved")
        if fruitless(run):
            verdict = Verdict(
                "failed",
                FailureClass.USER_ERROR,
                f"{_FRUITLESS} time limits in a row passed without a new checkpoint: raise `time`",
            )
    settled = settle(run, attempt, verdict, cluster.retries, cluster.notify)
    if not settled.again:
        return exit_code(settled.kind, verdict)
    insist(partial(open_attempt, run, Turn(turn.job, turn.restarts + 1, turn.submitted)))
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
    if insist(partial(run.record.exists, "result.json")):
        return Verdict("finished")
    said = [insist(partial(read_exits, run, attempt, node)) for node in range(cluster.nodes)]
    words = step_words(job_folder(cluster, run.uri), turn.job)
    exits: Sequence[RankExit] = [one for own in said for one in own or ()]
    missing = [node for node, own in enumerate(said) if own is None]
    if not missing:
        return classify(exits)
    if (out := memory.slurm_out_of_memory("", words)) is not None:
        return Verdict("failed", FailureClass.OUT_OF_MEMORY, out.reason)
    down = [fields for fields in nodes() if set(fields.get("State", "").split("+")) & _GONE]
    mine = _hosts(os.environ.get("SLURM_JOB_NODELIST", ""))
    names = [fields["NodeName"] for fields in down if fields.get("NodeName") in mine]
    if names:
        return Verdict("failed", FailureClass.NODE, f"node {', '.join(names)} is gone")
    told = [one for one in exits if one.code != 0]
    if told:
        return classify(told)
    if code == 6:
        return Verdict("superseded", reason="a newer attempt owns the run")
    last = words.strip().splitlines()[-1:] or ["no output"]
    started = insist(partial(run.record.exists, meeting_key(attempt)))
    if not started:
        return Verdict(
            "failed",
            FailureClass.CRASH,
            f"the ranks could not be started (srun: {code}): {last[0]}",
        )
    which = ", ".join(str(node) for node in missing)
    return Verdict(
        "failed", FailureClass.NODE, f"node {which} of the job gave no account (srun: {code})"
    )


_GONE = {"DOWN", "DOWN*", "FAIL", "NOT_RESPONDING"}


def step_words(folder: Path, job: str) -> str:
    """What Slurm and the ranks' parents wrote last into the shared folder."""
    text = ""
    for path in sorted(folder.glob(f"{job}_*_log.err")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            text += file.read().decode(errors="replace")
    return text


def fruitless(run: Run) -> bool:
    """Whether the last attempts all began at the same step."""
    starts = [claim.start_step for claim in run.claims()][-_FRUITLESS:]
    timeouts = [
        event.fields.get("class") == FailureClass.TIMEOUT
        for event in run.events({ev.PREEMPTED, ev.FAILED})
    ][-(_FRUITLESS - 1) :]
    return len(starts) == _FRUITLESS and len(set(starts)) == 1 and all(timeouts)


def exit_code(kind: str, verdict: Verdict) -> int:
    """The job's exit code, for Slurm's accounting and for jobs that wait for this one."""
    if kind == ev.FINISHED:
        return 0
    if kind == ev.CANCELLED:
        return 5
    if kind == ev.SUPERSEDED:
        return 6
    return 2 if verdict.failure is FailureClass.USER_ERROR else 1


def _limit_is_near(cluster: SlurmCluster, began: float | None) -> bool:
    if began is None:
        return False
    left = seconds_of(cluster.time) - (time.time() - began)
    return left < cluster.grace_seconds + _EARLY_SECONDS


def _began(run: Run, attempt: int) -> float | None:
    claims = [claim.time for claim in run.claims() if claim.attempt == attempt]
    return claims[0] if claims else None


def _hosts(nodelist: str) -> set[str]:
    from igpt.clusters.slurm.client import ask

    return set((ask("scontrol", "show", "hostnames", nodelist) or "").split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
