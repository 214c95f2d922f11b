"""Where this machine keeps what belongs to its runs, and how it knows their supervisors."""

import hashlib
import os
from pathlib import Path

from igpt.errors import UserError
from igpt.runs import Run


def state_folder() -> Path:
    """Where this machine keeps its queue and the supervisors' own output."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "igpt-jobs"


def local_key(run: Run) -> str:
    """The run among all runs of this machine; equal work in two stores has equal ids."""
    place = os.path.realpath(run.uri) if run.record.local_path("spec.yaml") else run.uri
    return f"{run.id}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def supervisor_file(run: Run, attempt: int, kind: str) -> Path:
    """The log or lock of an attempt's supervisor; its folder is made."""
    folder = state_folder() / "supervisors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made: {error.strerror}",
            expected="a folder for the state of this machine's runs",
            mend="Set XDG_STATE_HOME to a folder that can be written",
        ) from None
    return folder / f"{local_key(run)}-{attempt:04d}.{kind}"


def process_started(pid: int) -> str | None:
    """When a living process started, as the kernel counts it; None where there is none.

    With the process id it identifies a process, also after the id has been used again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
