"""How long `igpt-jobs list` takes where a store holds 1,000 runs: against a listing of the names.

In a folder and in a bucket of a real S3 server on this machine (SeaweedFS). Of the runs 950 have
finished; 25 are at work and 25 look so and are not, so that the records of 50 are read. Ours must
name every run and tell these 25 from those. The peers only list the names below `index/` and
`runs/`, which is the least that has to be asked: `find` in the folder, boto3 in the bucket, each as
a process of its own, as ours is.

Predicted, when ours had been timed and the peers had not: 0.03 times as fast as `find`, 0.5 times
as fast as boto3.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.harness import Figure, compare, timed
from igpt.runs import events as ev
from igpt.runs.record import Run, open_run
from igpt.storage import Store, open_store
from tests.support.s3_server import S3Server

RUNS, UNDECIDED = 1_000, 50
CHECKPOINTS = 20  # of each run at work: events that need not be read

_BOTO3 = """
import boto3, sys
bucket, _, above = sys.argv[1].removeprefix("s3://").partition("/")
pages = boto3.client("s3").get_paginator("list_objects_v2")
for folder in ("index", "runs"):
    for page in pages.paginate(Bucket=bucket, Prefix=f"{above}/{folder}/", Delimiter="/"):
        for item in page.get("Contents", []): print(item["Key"])
        for item in page.get("CommonPrefixes", []): print(item["Prefix"])
"""


def figures(quick: bool, folder: Path) -> list[Figure]:
    """A folder, then a bucket."""
    count, undecided = (20, 4) if quick else (RUNS, UNDECIDED)
    rounds = 1 if quick else 7
    near = open_store(str(folder / "store"))
    find = ["find", f"{near.uri}/index", f"{near.uri}/runs", "-maxdepth", "1"]
    found = _compared("a folder", near, {"find": find}, count, undecided, rounds)
    server = S3Server(folder / "s3")
    try:
        os.environ.update(server.environment())
        far = open_store(f"s3://{server.make_bucket()}/study")
        boto3 = [sys.executable, "-c", _BOTO3, far.uri]
        found += _compared("a bucket", far, {"boto3": boto3}, count, undecided, rounds)
    finally:
        server.stop()
    return found


def _compared(
    place: str,
    store: Store,
    peers: dict[str, Sequence[str]],
    count: int,
    undecided: int,
    rounds: int,
) -> list[Figure]:
    _fill(store, count, undecided)
    listing = [str(Path(sys.executable).parent / "igpt-jobs"), "list", "--store", store.uri]
    states = [line.split("\t")[1] for line in _run(listing).splitlines()]
    wanted = {"finished": count - undecided, "running": undecided // 2, "stalled": undecided // 2}
    assert {state: states.count(state) for state in set(states)} == wanted
    for peer in peers.values():
        assert len(_run(peer).splitlines()) >= 2 * count
    return compare(
        f"list of {count} runs in {place}, {undecided} undecided",
        timed(partial(_run, listing)),
        {name: timed(partial(_run, peer)) for name, peer in peers.items()},
        rounds=rounds,
    )


def _run(command: Sequence[str]) -> str:
    """What the command prints; it must end well."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _fill(store: Store, count: int, undecided: int) -> None:
    """Runs with what `list` may read of them; the first ones look as if they were at work."""
    with ThreadPoolExecutor(16) as pool:
        runs = [open_run(store, f"pretrain-{number:08x}") for number in range(count)]
        ends = ["running", "stalled"] * (undecided // 2) + ["finished"] * (count - undecided)
        list(pool.map(_make, runs, ends))


def _make(run: Run, end: str) -> None:
    run.record.put("spec.yaml", b"job: pretrain\n")
    run.record.put("attempts/0001/cluster.yaml", b"kind: local\nworkers: 2\n")
    run.event(ev.SUBMITTED, writer="client", attempt=1)
    # A process of this machine that is not there, or one of another machine.
    host = platform.node() if end == "stalled" else "another"
    run.event(ev.LAUNCHED, writer="supervisor", attempt=1, host=host, pid=1, started="0")
    run.event(ev.STARTED, writer="worker", attempt=1)
    if end == "finished":
        run.record.put("result.json", b"{}")
        run.event(ev.FINISHED, writer="worker", attempt=1)
        return
    for step in range(CHECKPOINTS):
        ev.write_event(run.record, ev.CHECKPOINTED, writer="worker", time=time.time(), step=step)
    progress = {"done": 20, "total": 100, "unit": "steps"}
    beat = {"time": time.time() + 3600, "phase": "running", "host": host, "progress": progress}
    run.record.put("attempts/0001/heartbeat.json", json.dumps(beat).encode())
