"""The figures of a node's ranks among Ray's own metrics, where Ray runs beside them.

    python -m igpt.clusters.slurm.ray_figures RUN   standard input: a line of JSON for each progress

In a process of its own: one that is connected to Ray ends where Ray does, and takes Slurm's signals
as it likes. The parent of the ranks must not.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from igpt.clusters.ranks.progress import Show

_END_SECONDS = 5.0


@contextmanager
def shown_by_ray(run_id: str, environment: Mapping[str, str]) -> Iterator[Show]:
    """What shows the progress of ranks in the Ray cluster that the environment names.

    It raises OSError where the process that does so has ended, or lags behind for an hour.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, run_id],
        stdin=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    assert process.stdin is not None
    pipe = process.stdin.fileno()
    os.set_blocking(pipe, False)

    def show(rank: int, progress: Mapping[str, Any]) -> None:
        # A line is shorter than what a pipe takes whole or not at all.
        os.write(pipe, json.dumps([rank, progress]).encode() + b"\n")

    try:
        yield show
    finally:
        process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(run_id: str) -> None:
    """Shows what comes, until nothing comes any more."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    import ray

    from igpt.clusters.ray.gauges import gauges

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.WARNING)
    show = gauges(run_id)
    for line in sys.stdin:
        rank, progress = json.loads(line)
        show(rank, progress)


if __name__ == "__main__":
    main(sys.argv[1])
