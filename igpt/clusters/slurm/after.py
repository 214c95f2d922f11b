"""In a job of Slurm, after its ranks: how the attempt ended, and whether the job is requeued.

    python -m igpt.clusters.slurm.after RUN_URI ATTEMPT EXIT_CODE_OF_SRUN

At the end of the batch script. It runs outside the step, and so also where the step was killed for
want of memory, or lost a node. What it decides it records; exit code 75 makes the script ask Slurm
to start the job again. IGPT_SLURM_JOB is what `scontrol show job` says of the job just now.
"""

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path

from igpt.clusters.files import cluster_of_kind
from igpt.clusters.outcome import settle
from igpt.clusters.ranks import memory
from igpt.clusters.ranks.exits import read_exits
from igpt.clusters.slurm.bounds import (
    FRUITLESS_LIMITS,
    FRUITLESS_STOPS,
    ended_without_store,
    fruitless,
    store_is_back,
)
from igpt.clusters.slurm.client import parse_fields
from igpt.clusters.slurm.config import AFTER_SECONDS, SlurmCluster, seconds_of
from igpt.clusters.slurm.jobs import read_job
from igpt.clusters.slurm.turn import (
    START_MARK,
    Turn,
    gone_nodes,
    hosts_of,
    meeting_key,
    open_attempt,
)
from igpt.errors import IgptError, NotFound, Unreachable
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers
from igpt.runs.failures import REQUEUE, FailureClass, RankExit, Verdict, classify
from igpt.runs.record import run_at
from igpt.runs.state import cancel_requested
from igpt.storage.patience import insist

log = logging.getLogger("igpt")

#: A store that is away is waited for so long: the nodes are held meanwhile. The next start settles.
_PATIENCE_SECONDS = 600.0
#: The warning may come up to a minute before its time, as Slurm counts in minutes.
_EARLY_SECONDS = 75.0
#: Of what was written since the start, the last bytes have to do.
_WORDS = 65_536
#: What srun returns where a signal ended the ranks' parents before they could heed it.
_SIGNALLED = frozenset(128 + number for number in (signal.SIGTERM, signal.SIGUSR2))
#: What slurmstepd says of a step that a more important job has ended; of others another reason, or
#: none (`_handle_signal_container` in its req.c).
_PREEMPTION = re.compile(r"CANCELLED AT \S+ DUE TO PREEMPTION")


def main(run_uri: str, submitted: int, code: int, patience: float = _PATIENCE_SECONDS) -> int:
    """Settles the attempt of this start of the job; returns the job's exit code.

    code: what srun returned. patience: seconds that a store that is away is waited for.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # it is about to end by itself
    run = run_at(run_uri)
    turn = Turn.of_job(os.environ, submitted)
    job = parse_fields(os.environ.get("IGPT_SLURM_JOB", ""))
    folder = Path(os.environ["IGPT_FOLDER"])  # the run's, shared by the nodes
    try:
        ended = insist(partial(conclude, run, turn, job, code, folder, patience), patience)
    except NotFound as gone:  # the run was deleted
        log.error("%s", gone)
        return 5
    except Unreachable as away:
        log.error("%s", away)
        return ended_without_store(folder, turn.job)
    except IgptError as error:
        log.error("%s", error)
        return error.exit_code
    store_is_back(folder, turn.job)
    return ended


def conclude(
    run: Run, turn: Turn, job: Mapping[str, str], code: int, folder: Path, patience: float
) -> int:
    """Settles the attempt and, where another follows, opens it; returns the job's exit code.

    May be called again where the store was away in between. job: what Slurm says of it.
    """
    cluster = cluster_of_kind(SlurmCluster, run, turn.submitted)
    attempt = attempt_of(run, turn)
    if attempt is None:
        if run.record.exists("result.json"):
            return 0
        log.error("attempt %d of run %s is not this job's", turn.submitted, run.id)
        return 6
    words = step_words(folder, turn)
    verdict = verdict_of(run, attempt, cluster, turn, code, words)
    if verdict.outcome != "finished":
        if was_preempted(words):
            verdict = preempted(verdict)
        elif was_cancelled(job, turn):
            run.event(ev.CANCEL_REQUESTED, writer="supervisor", attempt=attempt, by="scancel")
    if verdict.outcome == "stopped" or verdict.late:
        how = verdict.reason if verdict.late else "saved"
        limited = limit_is_near(run, attempt, cluster, job)
        if limited:
            verdict = Verdict("stopped", FailureClass.TIMEOUT, f"the time limit was near; {how}")
        elif verdict.late:
            verdict = Verdict("stopped", FailureClass.PREEMPTED, how)
        if fruitless(run, attempt, FRUITLESS_LIMITS if limited else FRUITLESS_STOPS):
            then = "raise `time`" if limited else "each is stopped too soon"
            reason = f"attempt after attempt ends without anything new saved: {then}"
            verdict = Verdict("failed", FailureClass.USER_ERROR, reason)
    settled = settle(run, attempt, verdict, cluster.retries, cluster.notify, patience=0.0)
    if not settled.again:
        return exit_code(settled.kind, verdict)
    # Insisted upon by itself: the end is told already, and the newest attempt soon the next one.
    return insist(partial(open_next, run, turn, cluster), patience)


def open_next(run: Run, turn: Turn, cluster: SlurmCluster) -> int:
    """Opens the attempt of the job's next start; returns the job's exit code.

    A cancel that came since the last was settled found nobody to tell: it is carried out here.
    """
    following = open_attempt(run, Turn(turn.job, turn.restarts + 1, turn.submitted))
    if not cancel_requested(run.events(ev.LIFE)):
        return REQUEUE
    verdict = Verdict("stopped", reason="cancelled between two attempts")
    settled = settle(run, following, verdict, cluster.retries, cluster.notify, patience=0.0)
    return exit_code(settled.kind, verdict)


def attempt_of(run: Run, turn: Turn) -> int | None:
    """The attempt of this start of the job; None where the run is another's."""
    last = max(attempt_numbers(run.record))
    found = read_job(run, last)
    if found is None and last == turn.submitted:
        return last  # the step never got as far as the record
    if found is not None and (found["job"], found["restarts"]) == (turn.job, turn.restarts):
        return last
    return None


def verdict_of(
    run: Run, attempt: int, cluster: SlurmCluster, turn: Turn, code: int, words: str
) -> Verdict:
    """The verdict from what every node said, from Slurm's own words, and from who said nothing."""
    if run.record.exists("result.json"):
        return Verdict("finished")
    said = [read_exits(run, attempt, node) for node in range(cluster.nodes)]
    exits: Sequence[RankExit] = [one for own in said for one in own or ()]
    missing = [str(node) for node, own in enumerate(said) if own is None]
    if not missing:
        return classify(exits)
    if (out := memory.slurm_out_of_memory("", words)) is not None:
        return Verdict("failed", FailureClass.OUT_OF_MEMORY, out.reason)
    if gone := gone_nodes(hosts_of(os.environ.get("SLURM_JOB_NODELIST", ""))):
        return Verdict("failed", FailureClass.NODE, f"node {', '.join(gone)} is gone")
    # Who lost a peer, or was torn down, does not say why: who is silent may be the reason.
    if any(one.failure or (one.code not in (0, 1) and not one.torn_down) for one in exits):
        return classify(one for one in exits if one.code != 0)
    if code == 6:
        return Verdict("superseded", reason="a newer attempt owns the run")
    if code == 3:
        return Verdict("failed", FailureClass.STORAGE, "the nodes could not reach the store")
    if not run.record.exists(meeting_key(attempt)):
        if code in {0, *_SIGNALLED}:
            return Verdict("stopped", FailureClass.PREEMPTED, "stopped while it was starting")
        last = words.strip().splitlines()[-1:] or ["no output"]
        reason = f"the ranks could not be started (srun: {code}): {last[0]}"
        return Verdict("failed", FailureClass.CRASH, reason)
    reason = f"node {', '.join(missing)} of the job gave no account (srun: {code})"
    return Verdict("failed", FailureClass.NODE, reason)


def was_preempted(words: str) -> bool:
    """Whether Slurm itself says so: it may cancel for a preemption, and the job looks cancelled."""
    return _PREEMPTION.search(words) is not None


def preempted(verdict: Verdict) -> Verdict:
    """The verdict over an attempt that Slurm has ended for another job.

    What was killed on the way is no lost node; what went wrong otherwise is still what it is.
    """
    killed = verdict.outcome == "failed" and verdict.failure is FailureClass.NODE
    reason = "Slurm ended the job for a more important one"
    return Verdict("stopped", FailureClass.PREEMPTED, reason) if killed else verdict


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


def step_words(folder: Path, turn: Turn) -> str:
    """What Slurm and the ranks' parents have written into the shared folder since this start."""
    mark = f"{START_MARK} {turn.launch}\n".encode()
    words = ""
    for path in sorted(folder.glob(f"{turn.job}_*_log.err")):
        try:
            with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as text:
                if (begun := text.rfind(mark)) >= 0:
                    words += text[max(begun + len(mark), len(text) - _WORDS) :].decode(
                        errors="replace"
                    )
        except (OSError, ValueError) as error:  # away; or empty, which cannot be mapped
            log.warning("%s: %s", path, error)
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
