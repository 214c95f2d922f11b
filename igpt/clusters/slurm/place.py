"""Where the files of Slurm's jobs are, in the folder that all nodes share."""

import hashlib
import os
from pathlib import Path

from igpt.clusters.slurm.config import SlurmCluster
from igpt.errors import UserError


def job_folder(cluster: SlurmCluster, run_uri: str) -> Path:
    """Script and output of one run's jobs; equal work in two stores has equal ids.

    The same whichever way a store that is a directory is reached, by a symbolic link or without.
    """
    address = run_uri if "://" in run_uri else os.path.realpath(run_uri)
    place = hashlib.sha256(address.encode()).hexdigest()[:8]
    return cluster.shared_folder() / f"{run_uri.rpartition('/')[2]}-{place}"


def code_folder(cluster: SlurmCluster, code: str | None) -> Path | None:
    """Where the code of a submission is unpacked; None for an installed wheel."""
    return None if code is None else cluster.shared_folder() / "code" / code


def make(folder: Path) -> None:
    """Makes a folder that the user alone can read. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "it cannot be written")
        if folder.stat().st_mode & 0o022:
            raise PermissionError(13, "others can write there, and so change the code that runs")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be used: {error.strerror}",
            expected="a folder of the user's that the login node and all nodes share",
            mend="Set `folder` in the cluster file to one, e.g. below $SCRATCH or $HOME",
        ) from None
