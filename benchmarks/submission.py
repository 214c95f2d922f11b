"""How long `igpt-jobs submit` takes on a real Slurm: against a bare `sbatch` of the same script.

Slurm runs on this machine, as in the tests, and holds the jobs: none starts. Ours checks the inputs
and the cluster, packs up the code, writes the run's record into a folder and calls `sbatch`; each
turn submits another seed. The peer is `sbatch` alone, with the script that ours has written. Both
have to come to a job in the queue. What counts is the difference of the two times: the client may
take one second more. Needs root, and the Debian packages that `make test-cluster` needs.

Predicted, when ours had been seen to take 1.1 s and the peer had not been timed: 0.03 times as
fast, 1.0 s more.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness import Figure, compare, timed
from igpt.storage import open_store
from tests.support import study
from tests.support.slurm import missing
from tests.support.slurm_cluster import SlurmCluster

_CLUSTER = """
kind: slurm
workers: 2
nodes: 2
cpus_per_worker: 1
time: 1:00:00
folder: {folder}
sbatch: {{hold: true}}
"""


def absent() -> str | None:
    """What this machine lacks for it; None where nothing is missing."""
    return missing()


def figures(quick: bool, folder: Path) -> list[Figure]:
    """The command and sbatch."""
    store = open_store(str(folder / "store"))
    study.write_digits(store)
    (folder / "digits.yaml").write_text(f"job: pretrain\n{study.TRAINING}")
    (folder / "slurm.yaml").write_text(_CLUSTER.format(folder=folder / "shared"))
    command = [str(Path(sys.executable).parent / "igpt-jobs"), "submit", "digits.yaml"]
    command += ["--cluster", "slurm.yaml", "--store", store.uri, "--yes"]
    cluster = SlurmCluster(folder / "slurm")
    cluster.start()
    try:
        environment = {**os.environ, **cluster.environment()}
        run = partial(_run, environment=environment, folder=folder)
        seeds = itertools.count()

        def submit() -> None:
            run([*command, f"seed={next(seeds)}"])

        submit()
        script = str(next((folder / "shared").glob("*/*_submission.sh")))
        run(["sbatch", script])
        assert len(cluster.squeue().splitlines()) == 2
        return compare(
            "submit a pretraining to Slurm",
            timed(submit),
            {"sbatch": timed(partial(run, ["sbatch", script]))},
            rounds=1 if quick else 21,
        )
    finally:
        cluster.stop()


def _run(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
    """Runs a command, which must end well."""
    subprocess.run(command, env=environment, cwd=folder, capture_output=True, check=True)
