"""Beside `node`, in a process of its own: torch, the accelerators, a sum over all nodes, imports.

It is started from its text. The order to add up comes by standard input, as all nodes have to do so
at once; answers are lines of JSON on standard output. What hangs here is ended by `node`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

#: For the nodes to find each other, and then for the sum.
_TIMEOUT = timedelta(seconds=15)
_MODULES = ("numpy", "pyarrow", "sklearn", "webdataset", "ray")


def main() -> None:
    """Answers `devices`, then `reduce` where it is asked for it, then `imports`."""
    try:
        say(at="import torch")
        say(devices=devices())
    except Exception as error:  # whatever it is, the node says it
        say(devices=failure(error))
    order = json.loads(sys.stdin.readline() or "{}")
    if order:
        say(at="the sum over all nodes")
        say(reduce=reduce(order))
    broken = {}
    for module in _MODULES:
        say(at=f"import {module}")
        try:
            importlib.import_module(module)
        except Exception as error:
            broken[module] = failure(error)["error"]
    say(imports={"broken": broken})


def devices() -> dict[str, Any]:
    """The accelerators as torch sees them."""
    import torch

    names = [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())]
    return {"names": names, "cuda": torch.version.cuda}


def reduce(order: dict[str, Any]) -> dict[str, Any]:
    """By backend: the seconds that a sum over its members took, or why there was none.

    order: `sums` are backends and the ranks that take part in each, at first all of them.
    """
    import torch
    from torch import distributed

    interface = order["interface"] or _interface(order["address"], first=order["rank"] == 0)
    if interface:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    if order["interface"]:
        os.environ["NCCL_SOCKET_IFNAME"] = order["interface"]
    answer: dict[str, Any] = {"interface": interface}
    for number, (backend, members) in enumerate(order["sums"]):
        try:
            begun = time.monotonic()
            if number == 0:
                distributed.init_process_group(
                    backend,
                    init_method=f"tcp://{order['address']}:{order['port']}",
                    rank=order["rank"],
                    world_size=order["world"],
                    timeout=_TIMEOUT,
                )
                group = None
            else:
                group = distributed.new_group(members, backend=backend, timeout=_TIMEOUT)
            if order["rank"] in members:
                value = torch.full((1024,), order["rank"] + 1.0)
                value = value.cuda() if backend == "nccl" else value
                distributed.all_reduce(value, group=group)
                if value.tolist() != [float(sum(members) + len(members))] * len(value):
                    raise ArithmeticError(f"the sum over all nodes is wrong: {value[0].item()}")
                answer[backend] = {"seconds": time.monotonic() - begun}
        except Exception as error:
            answer[backend] = failure(error)
            break
    with contextlib.suppress(Exception):
        distributed.barrier()  # the others may need what node 0 keeps for them
    return answer


def _interface(address: str, *, first: bool) -> str | None:
    """As runs choose it; None where this package cannot be imported here."""
    try:
        from igpt.clusters.network import interface_of, interface_towards
    except ImportError:
        return None
    return interface_of(address) if first else interface_towards(address)


def failure(error: Exception) -> dict[str, Any]:
    """Its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]}


def say(**facts: Any) -> None:
    """One line for `node`."""
    print(json.dumps(facts), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
    # Libraries that hang at the end have nothing more to say.
    os._exit(0)
