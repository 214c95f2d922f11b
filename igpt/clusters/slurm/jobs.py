"""Which job of Slurm an attempt is, as the run's record has it."""

import json
from typing import Any

from igpt.errors import NotFound
from igpt.runs import Run
from igpt.runs.attempts import attempt_numbers
from igpt.runs.reading import read_json


def job_key(attempt: int) -> str:
    """Where the job of an attempt is recorded: exclusively, so that no two work on it."""
    return f"attempts/{attempt:04d}/job.json"


def write_job(run: Run, attempt: int, job: str, *, restarts: int) -> bool:
    """Records which job, started for which time, is to work on an attempt; False where one is."""
    body = json.dumps({"job": job, "restarts": restarts}).encode()
    return run.record.create(job_key(attempt), body)


def read_job(run: Run, attempt: int) -> dict[str, Any] | None:
    """The job of an attempt, `{"job": id, "restarts": number}`; None where none is recorded."""
    try:
        return read_json(run.record, job_key(attempt))
    except NotFound:
        return None


def recorded_job(run: Run) -> str | None:
    """The id of the newest attempt's job."""
    numbers = attempt_numbers(run.record)
    found = read_job(run, numbers[-1]) if numbers else None
    return None if found is None else str(found["job"])
