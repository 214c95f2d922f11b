"""Between us and Ray on one node: ends Ray, and all that it has started, when we end.

    python ray_guard.py COMMAND...     standard input: a pipe that its starter holds open

Ray's own processes end with `ray start` by the kernel's hand, but for some, which go on for a
minute. And Slurm sends its signals to every process of a step, also to these; they are for the
ranks. So all of it is deaf to signals (but KILL), and ends when the pipe is closed.

It is called by its path and imports nothing of ours, so that it costs no time.
"""

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time

_DEAF = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
_PR_SET_PDEATHSIG = 1
_OPEN_FILES = 65_536
_TICK = 0.1
_SWEEP_SECONDS = 10.0


def main(command: list[str]) -> int:
    """Runs a command in this session until it ends or the pipe is closed; returns its exit code."""
    # Both are inherited by all that it starts. Ray has many files open.
    signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = most == resource.RLIM_INFINITY
    wanted = _OPEN_FILES if unlimited else min(most, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    while process.poll() is None and not select.select([sys.stdin], [], [], _TICK)[0]:
        pass
    deadline = time.monotonic() + _SWEEP_SECONDS
    while (others := _session()) and time.monotonic() < deadline:
        for pid in others:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.poll()
        time.sleep(0.02)
    return process.wait()


def _session() -> list[int]:
    """The other living processes of this session."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, _, session = file.read().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z" and int(session) == os.getsid(0):
            found.append(int(name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
