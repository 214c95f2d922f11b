"""The job that has every node of a Ray cluster examine itself, started from its text on the head.

    python on_ray.py        with errand.json beside it: what `ray.gather` has written

One task a node starts the examination there, and its lines come back at once. Standard output: a
line `IGPT-DOCTOR-RAY <time> <what was said>` for each, by this machine's clock, and now and then
one that says nothing. It needs Ray and nothing else: what a node lacks is for the node to say.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

#: Begins each line that is for the client.
MARK = "IGPT-DOCTOR-RAY"


def main() -> None:
    """Examines all nodes that are alive now."""
    with open("errand.json") as file:
        errand = json.load(file)
    ray.init(address="auto", log_to_driver=False)
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = sorted((one for one in known if one["Alive"]), key=lambda one: str(one["NodeID"]))
    names = [node["NodeManagerHostname"] for node in nodes]
    addresses = [node["NodeManagerAddress"] for node in nodes]
    say(json.dumps({"nodes": names, "resources": [node["Resources"] for node in nodes]}))
    ports = errand["ports"]
    places = json.dumps({"names": names, "addresses": addresses, "ports": ports}) + "\n"
    begin = ray.remote(num_cpus=0, max_retries=0, num_returns="streaming")(examine)
    listeners = []
    for rank, node in enumerate(nodes):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        own = [f"--rank={rank}", f"--name={names[rank]}", f"--address={addresses[rank]}"]
        command = [*errand["command"], *own]
        lines = begin.options(scheduling_strategy=there).remote(command, errand["sources"] + places)
        listeners.append(threading.Thread(target=pass_on, args=(names[rank], lines), daemon=True))
    for listener in listeners:
        listener.start()
    while any(listener.is_alive() for listener in listeners):
        say("")
        time.sleep(0.5)
    say(json.dumps({"ended": True}))


def examine(command: list[str], text: str) -> Iterator[str]:
    """On a node: what its examination says, line by line."""
    variables = {**os.environ, "PYTHONSAFEPATH": "1"}
    if not variables.get("CUDA_VISIBLE_DEVICES"):
        variables.pop("CUDA_VISIBLE_DEVICES", None)  # where a Ray hides what was not asked for
    inherited = variables.get("PYTHONPATH", "").split(os.pathsep)
    here = ("", os.getcwd())  # where this text is, and nothing of the run's
    variables["PYTHONPATH"] = os.pathsep.join(path for path in inherited if path not in here)
    with subprocess.Popen(
        [sys.executable, *command],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        # Not closed: that would tell the examination that we are gone.
        threading.Thread(target=tell, args=(process.stdin, text), daemon=True).start()
        # Ray uses what no file has but a generator.
        for line in process.stdout or ():  # noqa: UP028
            yield line


def tell(sink: Any, text: str) -> None:
    """Writes all of it, or as much as is wanted."""
    with suppress(BrokenPipeError):
        sink.write(text)
        sink.flush()


def pass_on(name: str, lines: Any) -> None:
    """Says what a node says; how its task ended, where it did not end well."""
    try:
        for line in lines:
            say(ray.get(line).rstrip("\n"))
    except Exception as error:  # of many kinds; the others go on
        words = [line.strip() for line in str(error).splitlines() if line.strip()]
        say(f"{name}: {words[-1] if words else type(error).__name__}")


def say(text: str) -> None:
    """One line."""
    with _LOCK:
        print(MARK, time.time(), text, flush=True)  # noqa: T201


_LOCK = threading.Lock()

if __name__ == "__main__":
    main()
