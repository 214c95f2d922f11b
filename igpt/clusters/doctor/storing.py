"""Beside `node`, in a process of its own: whether the store can be used from here.

It is started from its text, with the store's URI, the token of the examination and who asks: a
rank, or `client`. The client goes first and leaves an object for the nodes to find; of the nodes
exactly one may create the object that they all try to create.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

#: Bytes whose upload is timed.
SIZE = 4 << 20


def main(uri: str, token: str, who: str) -> None:
    """Answers with one line of JSON, under `store`."""
    try:
        from igpt.errors import IgptError
    except ImportError as error:
        say({"missing": error.name or str(error)})
        return
    try:
        say(trial(uri, token, who))
    except IgptError as error:
        say({"error": error.what, "expected": error.expected, "mend": error.mend})
    except ImportError as error:
        say({"missing": error.name or str(error)})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})


def trial(uri: str, token: str, who: str) -> dict[str, Any]:
    """Looks, creates and uploads. Raises what the store raises."""
    from igpt.storage import check_writable, open_store

    root = open_store(uri)
    client, claim, upload = keys(token, who)
    # First, as the answer to a HEAD request would not say what is wrong with our credentials.
    check_writable(root)
    if who == "client":
        root.create(client, b"")
        return {"rate": _rate(root, upload)}
    seen = root.exists(client)
    claimed = root.create(claim, who.encode())
    return {"seen": seen, "claimed": claimed, "rate": _rate(root, upload)}


def keys(token: str, who: str) -> list[str]:
    """The objects of the client, of all nodes, and of whoever asks."""
    return [f"igpt-doctor-{token}/{name}" for name in ("client", "claim", f"upload-{who}")]


def _rate(root: Any, key: str) -> float:
    """MB a second."""
    data = os.urandom(SIZE)
    begun = time.monotonic()
    try:
        root.put(key, data)
        return SIZE / 1e6 / max(1e-6, time.monotonic() - begun)
    finally:
        root.delete([key])


def say(answer: dict[str, Any]) -> None:
    """One line for `node`."""
    print(json.dumps({"store": answer}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
