"""Beside `node`, in a process of its own: what is installed, what can be written, what resolves.

It is started from its text, and needs nothing but the standard library of any Python since 3.9.
Answers are lines of JSON on standard output, as soon as they are known. A disk or a name server
that hangs costs the answer about itself alone.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import sys
import threading
import time
from importlib import metadata, util
from typing import Any, Callable  # noqa: UP035 for old Pythons

#: Modules by the names of their distributions; what a run imports, now or later.
PACKAGES = {
    "boto3": "boto3",
    "igpt-jobs": "igpt",
    "numpy": "numpy",
    "pillow": "PIL",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "pyyaml": "yaml",
    "ray": "ray",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "torch": "torch",
    "webdataset": "webdataset",
}
_SECONDS = 12.0  # for all disks, and then for all names
_WRITTEN = 4 << 20  # bytes, to try a disk

Facts = dict[str, Any]


def main(folder: str) -> None:
    """Answers `packages`, `code` and `disks`, then `names` for the names that come in by a line."""
    say(packages=packages(), code={"origin": origin("igpt")})
    say(disks=disks(folder))
    order = json.loads(sys.stdin.readline() or "{}")
    if order:
        say(names=names(order["names"], order["addresses"]))


def packages() -> Facts:
    """Versions by distribution; None where it cannot be imported, "?" where none is known."""
    found: Facts = {}
    for name, module in PACKAGES.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "?"
        found[name] = version if origin(module) else None
    return found


def origin(module: str) -> str | None:
    """The file of a module; None where there is none, as for an empty folder of its name."""
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None else None


def disks(folder: str) -> Facts:
    """What can be written where runs write: free bytes, or why not."""
    cache = os.environ.get("IGPT_CACHE") or os.path.join("~", ".cache", "igpt-jobs")
    places = {"TMPDIR": os.environ.get("TMPDIR") or "/tmp", "cache": cache}  # noqa: S108
    if folder:
        places["folder"] = folder
    paths = {what: os.path.abspath(os.path.expanduser(path)) for what, path in places.items()}
    answers = together({what: (_disk, path) for what, path in paths.items()})
    return {what: {"path": paths[what], **answer} for what, answer in answers.items()}


def _disk(path: str) -> Facts:
    place = path
    while not os.path.isdir(place):  # it is made when it is needed
        place = os.path.dirname(place)
    file = os.path.join(place, f".igpt-doctor-{os.getpid()}-{time.time_ns()}")
    try:
        with open(file, "wb") as trial:
            trial.write(os.urandom(_WRITTEN))
            os.fsync(trial.fileno())
    finally:
        if os.path.exists(file):
            os.unlink(file)
    return {"free": shutil.disk_usage(place).free, "exists": place == path}


def names(known: list[str | None], addresses: list[str | None]) -> Facts:
    """Every node's name as addresses, and every address as names."""
    forward = {("forward", name): (_addresses, name) for name in known if name}
    reverse = {("reverse", address): (_names, address) for address in addresses if address}
    answers: Facts = {"forward": {}, "reverse": {}}
    for (way, asked), answer in together({**forward, **reverse}).items():
        answers[way][asked] = answer
    return answers


def _addresses(name: str) -> Facts:
    found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    return {"found": sorted({str(one[4][0]) for one in found})}


def _names(address: str) -> Facts:
    first, more, _ = socket.gethostbyaddr(address)
    return {"found": [first, *more]}


def together(works: dict[Any, tuple[Callable[[str], Facts], str]]) -> dict[Any, Facts]:
    """All at once, each on its argument; `{"error": ...}` for what fails or hangs."""
    done: queue.Queue[tuple[Any, Facts]] = queue.Queue()

    def carry_out(key: Any, work: Callable[[str], Facts], argument: str) -> None:
        try:
            answer = work(argument)
        except OSError as error:
            answer = {"error": error.strerror or str(error)}
        done.put((key, answer))

    for key, (work, argument) in works.items():
        threading.Thread(target=carry_out, args=(key, work, argument), daemon=True).start()
    answers = {key: {"error": f"no answer within {_SECONDS:.0f} s"} for key in works}
    deadline = time.monotonic() + _SECONDS
    for _ in works:
        try:
            key, answer = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        answers[key] = answer
    return answers


def say(**facts: Any) -> None:
    """One line for `node`."""
    print(json.dumps(facts), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # whatever hangs
