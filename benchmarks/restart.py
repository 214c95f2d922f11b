"""How soon a run trains again after a worker was killed: against torchrun and its elastic agent.

One worker, SIGKILL, and the time until the next process has finished a training step from the last
checkpoint. The peer is what one would write instead: a script of the same network that loads a
checkpoint with `torch.load` and is started again by `torchrun --max-restarts`. Ours finds its
checkpoint in the store, claims the attempt, and records every part of it.

Predicted: 0.8 times as fast, both between 4 and 8 s, as both import torch.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import Figure, compare
from igpt.clusters import cancel, status
from igpt.runs import Run
from igpt.storage import open_store
from tests.support import study

_PEER = """
import json, os, sys, time, torch, torch.distributed as dist
import igpt
from igpt.model.config import ModelConfig
folder = sys.argv[1]
dist.init_process_group("gloo")
model = igpt.ImageGPT(ModelConfig(layers=2, width=32, heads=2, resolution=8, colors=16), seed=0)
ddp = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
path = os.path.join(folder, "checkpoint.pt")
step = 0
if os.path.exists(path):
    state = torch.load(path)
    model.load_state_dict(state["model"]); optimizer.load_state_dict(state["optimizer"])
    step = state["step"]
draw = torch.Generator().manual_seed(0)
while True:
    tokens = torch.randint(16, (12, 64), generator=draw)
    loss = torch.nn.functional.cross_entropy(ddp(tokens).flatten(0, 1), tokens.flatten())
    optimizer.zero_grad(); loss.backward(); optimizer.step(); step += 1
    if step % 20 == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, path + ".new"); os.replace(path + ".new", path)
    with open(os.path.join(folder, "at.json.new"), "w") as file:
        json.dump({"pid": os.getpid(), "step": step}, file)
    os.replace(os.path.join(folder, "at.json.new"), os.path.join(folder, "at.json"))
    time.sleep(0.01)
"""


def figures(quick: bool, folder: Path) -> list[Figure]:
    """The local cluster and torchrun."""
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    store = open_store(str(folder / "store"))
    study.write_digits(store)
    with study.cleaned(store):
        run = study.start(
            store,
            study.cluster(heartbeat_seconds=0.1, retries={"node": 99}),
            *("schedule.steps=1000000", "checkpoints.every_steps=200"),
        )
        study.reached(run, 200)
        peer = _Peer(folder)
        try:
            return compare(
                "training again after SIGKILL",
                lambda: _ours(run),
                {"torchrun": peer.turn},
                rounds=1 if quick else 5,
            )
        finally:
            peer.stop()
            cancel(run)
            study.until(lambda: not status(run).state.active, "it is cancelled")


def _ours(run: Run) -> float:
    """Seconds from the kill of the worker to the first step of the next attempt."""
    before = len(run.claims())
    study.until(lambda: _steps(run, before), "it trains")
    study.send(study.processes(run, "igpt.jobs"), signal.SIGKILL)
    begun = time.perf_counter()
    study.until(lambda: len(run.claims()) > before, "it is claimed again")
    study.until(lambda: _steps(run, before + 1), "it trains again")
    return time.perf_counter() - begun


def _steps(run: Run, attempt: int) -> bool:
    """Whether the attempt has said that it has made a step."""
    try:
        beat = json.loads(run.record.get(f"attempts/{attempt:04d}/heartbeat.json"))
    except Exception:  # not yet
        return False
    return bool(beat["progress"])


class _Peer:
    """A script under torchrun that is killed and comes back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "peer"
        self.folder.mkdir()
        (self.folder / "train.py").write_text(_PEER)
        options = ["--standalone", "--nproc-per-node=1", "--max-restarts=99"]
        script = [str(self.folder / "train.py"), str(self.folder)]
        self.agent = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *options, *script],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        study.until(lambda: self._at().get("step", 0) > 20, "the peer trains")

    def turn(self) -> float:
        """Seconds from the kill of the worker to the first step of the next one."""
        pid = self._at()["pid"]
        os.kill(pid, signal.SIGKILL)
        begun = time.perf_counter()
        study.until(lambda: self._at()["pid"] != pid, "the peer trains again")
        return time.perf_counter() - begun

    def stop(self) -> None:
        """Ends agent and worker."""
        self.agent.terminate()
        self.agent.wait(timeout=60)

    def _at(self) -> dict[str, int]:
        try:
            found: dict[str, int] = json.loads((self.folder / "at.json").read_text())
        except FileNotFoundError:
            return {}
        return found
