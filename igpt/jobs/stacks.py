"""The Python stacks of a rank that no longer moves, asked for from outside.

Each rank calls `install` first thing. Its parent calls `ask`: a rank that gets SIGQUIT writes the
stacks of all its threads to its standard error and goes on as if nothing had happened. The handler
is C and takes no lock, so it answers also while the main thread waits in a library with the
interpreter's lock in hand. `summary` finds in such a dump the one line that a person wants to see.
"""

import faulthandler
import os
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

_STDERR = 2  # the descriptor itself: whatever has replaced sys.stderr, the parent reads this one

_LINE = r'  File "(.*)", line (\S+) in (.*)\n'
_FRAME = re.compile(_LINE)
_THREAD = re.compile(
    r"^(?:Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):\n"
    rf"(?P<frames>(?:{_LINE})+)(?P<cut>\n\.\.\.$)?",
    re.MULTILINE,
)
_INSTALLED = re.compile(r".*/(?:(?:site|dist)-packages|python3\.\d+)/")
_OURS = "igpt/"


def install() -> None:
    """Makes this process answer SIGQUIT with its stacks, and say where it was when it crashes."""
    faulthandler.enable(file=_STDERR, all_threads=True)
    faulthandler.register(signal.SIGQUIT, file=_STDERR, all_threads=True, chain=False)


def ask(pids: Iterable[int]) -> dict[int, str]:
    """Asks every process for its stacks; returns why some will not answer now, by process id.

    pids: children of the caller that it has not waited for, so that no id can be another's. A
    process that would die of the question is not asked; one that is only held up is, and answers
    when it goes on.
    """
    silent = {}
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            silent[pid] = "has ended" if sys.platform == "linux" else "can be asked on Linux only"
            continue
        if why := obstacle(status):
            silent[pid] = why
        if _catches(status):
            os.kill(pid, signal.SIGQUIT)
    return silent


def obstacle(status: str) -> str | None:
    """Why a process cannot answer now, from its `/proc/<pid>/status`; None where it can."""
    state = _field(status, "State")[:1]
    if state in ("Z", "X"):
        return "has ended"
    if not _catches(status):
        return "has not come far enough to answer"
    if state in ("T", "t"):
        return "is stopped (SIGSTOP or a debugger) and answers only when it is continued"
    if state == "D":
        return "waits inside the kernel, as for a disk or a device, and answers when that ends"
    return None


def summary(text: str) -> str | None:
    """Where the main thread stood in the last dump of `text`, in one line; None without a dump.

    text: a rank's output, read when the dump has been written to its end.

    "in wait at threading.py:327, called from fill at igpt/data/loader.py:88": the innermost frame
    and, where that is not ours, the innermost that is.
    """
    threads = list(_THREAD.finditer(text))
    # A dump goes from the youngest thread to the oldest, which is the main one, and is cut off
    # after a hundred: then the main thread is not in it.
    if not threads or threads[-1]["cut"]:
        return None
    frames = [
        (_short(path), line, function)
        for path, line, function in _FRAME.findall(threads[-1]["frames"])
    ]
    path, line, function = frames[0]
    said = f"in {function} at {path}:{line}"
    ours = next((frame for frame in frames if frame[0].startswith(_OURS)), None)
    if ours is None or ours is frames[0]:
        return said
    return f"{said}, called from {ours[2]} at {ours[0]}:{ours[1]}"


def _catches(status: str) -> bool:
    """Whether the process has a handler for SIGQUIT; without one the signal would kill it."""
    caught = int(_field(status, "SigCgt") or "0", 16)
    return bool(caught >> (signal.SIGQUIT - 1) & 1)


def _field(status: str, name: str) -> str:
    found = re.search(rf"^{name}:\s*(.*)$", status, re.MULTILINE)
    return found[1] if found else ""


def _short(path: str) -> str:
    """The path as it is imported, without the folders of this machine."""
    installed = _INSTALLED.match(path)
    if installed:
        return path[installed.end() :]
    _, ours, rest = path.rpartition("/" + _OURS)
    return _OURS + rest if ours else path
