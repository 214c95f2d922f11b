"""Machines whose disk is slow, so that a run lasts long and costs little.

A scenario needs a run that is still at work when something happens to it. Ranks that compute all
that time take the CPUs from the other tests, which then take longer, too. On these machines rank 0
waits for its disk whenever it says how far it is, which is at each meeting of the ranks
(`sync_every`), and the others wait for rank 0. What they compute is not touched.

It is Python's `sitecustomize`, found through PYTHONPATH, which the ranks of every cluster inherit.
"""

import os
from pathlib import Path

#: For each report of rank 0's progress. The losses of a run are the same with and without.
SECONDS = 0.08

_HOOK = Path(__file__).parent / "slow_disk"


def variables() -> dict[str, str]:
    """Of the processes that start ranks: the client here, the daemons of a node elsewhere."""
    inherited = os.environ.get("PYTHONPATH")
    path = f"{_HOOK}{os.pathsep}{inherited}" if inherited else str(_HOOK)
    return {"SLOW_DISK": str(SECONDS), "PYTHONPATH": path}
