"""Was it for want of memory that a rank was killed?

A rank that is killed by SIGKILL cannot say why, and the kernel tells its parent nothing. What there
is to see: the kernel counts the processes that it kills for want of memory, one by one in each
memory cgroup and all together for the machine, and says how much is left. A kill counted in the
very cgroup of the ranks makes it certain, wherever else the limit was; a kill counted somewhere on
the machine, or too little left just before the end, makes it probable.

Only what any process may read is read: /proc, and cgroups of version 1 or 2. A file that a kernel
does not have makes the answer less certain; elsewhere than on Linux there is no verdict.
(Linux, Documentation/admin-guide: cgroup-v1/memory.rst, cgroup-v2.rst, mm/oom_kill.c.)
"""

import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

#: A kill counted this many seconds ago or less may be that of a rank which has ended now: one that
#: fills a large machine takes a while to die.
RECENT_SECONDS = 30.0

#: Less than this part left is too little. A rank can take the rest between two samples.
TIGHT = 0.05

_UNLIMITED = 2**62  # version 1 writes "no limit" as the largest number of whole pages

_PAIR = re.compile(r"^(\w+):?[ \t]+(\d+)(?: kB)?$", re.MULTILINE)

_MOUNT = re.compile(
    r"\S+ \S+ \S+ (?P<root>\S+) (?P<place>\S+) .*- (?P<type>cgroup2?) \S+ (?P<options>\S+)$"
)

# sacct cuts a state to the width of its column, squeue has a short form.
_SLURM_STATE = re.compile(r"\bOUT_OF_ME|\bOOM\b")

# The words of versions from 17.11 on. "slurmstepd" may carry the node's name, and the time may
# stand in its place. The last are of Slurm's own gatherer, which looks and kills by itself.
_SLURM_LINE = re.compile(
    r"^(?:\d+: )?(?:(?:slurmstepd|srun)\S*:|\[[\dT:.+-]+\]) error: "
    r"(Detected [1-9]\d* oom[-_]kill events?(?:\(s\))?(?: in (?:step )?[\w.=+]*\w)?"
    r"|\S+: tasks? [\d,-]+: Out Of Memory"
    r"|.*\bexceeded (?:virtual )?memory limit .*, being killed)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class OutOfMemory:
    """The finding that a process ended for want of memory."""

    certain: bool
    reason: str  # one line, without a full stop


@dataclass(frozen=True)
class Room:
    """How much memory is left, in bytes."""

    of: str  # cgroup or machine
    free: int
    total: int

    @property
    def tight(self) -> bool:
        """Whether it is so little that a process may have been killed for it."""
        return self.free < TIGHT * self.total


@dataclass(frozen=True)
class Cgroup:
    """The memory cgroup of a process."""

    version: int
    folders: tuple[Path, ...]  # its own, which may count, its parent, and so on up to the top
    at_the_top: bool  # of the machine's: it is everybody's, and has no limit

    def kills(self) -> int | None:
        """The processes of this cgroup that the kernel has killed; None where that is not said."""
        if self.at_the_top:
            return None
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _numbers(self.folders[0] / name).get("oom_kill")

    def room(self) -> Room | None:
        """What is left under the limit that is nearest; None where none is set."""
        rooms = [room for folder in self.folders if (room := self._room(folder))]
        return min(rooms, key=lambda room: room.free, default=None)

    def _room(self, folder: Path) -> Room | None:
        if self.version == 1:
            names, prefix = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"
        else:
            names, prefix = ("memory.max", "memory.current"), ""
        limit, usage = (_number(folder / name) for name in names)
        if limit is None or usage is None or limit >= _UNLIMITED:
            return None
        # The pages of files count as used, and are given back before anything is killed.
        stat = _numbers(folder / "memory.stat")
        files = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        return Room("cgroup", limit - max(0, usage - files), limit)


@dataclass(frozen=True)
class _Counts:
    time: float
    cgroup: int | None
    machine: int | None


@dataclass(frozen=True)
class _Seen:
    """A process when it was last seen alive."""

    peak: int  # bytes resident at most until then
    rooms: tuple[Room, ...]


class MemoryWatch:
    """Made before the ranks start, told of them while they run, asked when one was killed."""

    def __init__(
        self, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """proc: where the kernel shows itself. clock: seconds."""
        self._proc = proc
        self._clock = clock
        self._cgroup = find_cgroup(proc)
        self._counts = deque([self._count()])
        self._seen: dict[int, _Seen] = {}

    def sample(self, pids: Iterable[int]) -> None:
        """Notes how things stand; to be called about once a second; takes half a millisecond."""
        counts = self._count()
        self._counts.append(counts)
        while len(self._counts) > 1 and self._counts[1].time <= counts.time - RECENT_SECONDS:
            self._counts.popleft()
        rooms = self._rooms()
        for pid in pids:
            # A process that is on its way out has no memory any more.
            peak = _numbers(self._proc / str(pid) / "status").get("VmHWM")
            if peak is not None:
                self._seen[pid] = _Seen(1024 * peak, rooms)

    def verdict(self, pid: int) -> OutOfMemory | None:
        """Whether a process that SIGKILL has ended, and not ours, was out of memory.

        To be asked as soon as its end is known; it need not have been waited for.
        """
        before, now = self._counts[0], self._count()
        seen = self._seen.get(pid)
        size = f"its own size had reached {_size(seen.peak)}" if seen else "its own size is unknown"
        if _rise(before.cgroup, now.cgroup):
            limit = self._cgroup.room() if self._cgroup else None
            where = f"cgroup limit {_size(limit.total)}; " if limit else ""
            return OutOfMemory(True, f"killed by the kernel for want of memory ({where}{size})")
        killed = _rise(before.machine, now.machine)
        # A cgroup that counts and did not, says that the kernel's victim was somebody else's.
        if killed and now.cgroup is None:
            others = f"{killed} process{'es' if killed > 1 else ''} on this machine"
            return OutOfMemory(
                False,
                "probably out of memory: killed by signal 9 just as the kernel killed "
                f"{others} for want of memory; {size}",
            )
        for room in seen.rooms if seen else ():
            if room.tight:
                left = f"{_size(room.free)} of {_size(room.total)} of the {room.of}"
                return OutOfMemory(
                    False,
                    f"probably out of memory: killed by signal 9 while {left} were free; {size}",
                )
        return None

    def _count(self) -> _Counts:
        own = self._cgroup.kills() if self._cgroup else None
        return _Counts(self._clock(), own, _numbers(self._proc / "vmstat").get("oom_kill"))

    def _rooms(self) -> tuple[Room, ...]:
        limit = self._cgroup.room() if self._cgroup else None
        return tuple(room for room in (limit, _machine(self._proc)) if room)


def find_cgroup(proc: Path = Path("/proc")) -> Cgroup | None:
    """The memory cgroup of this process; None where there are no cgroups or it is not to be seen.

    Where the memory controller is not handed down to the last level, it is the level above that
    the process is counted in.
    """
    memberships = dict(_memberships(_text(proc / "self" / "cgroup")))
    for line in _text(proc / "self" / "mountinfo").splitlines():
        mount = _MOUNT.match(line)
        if mount is None or (
            mount["type"] == "cgroup" and "memory" not in mount["options"].split(",")
        ):
            continue
        version = 1 if mount["type"] == "cgroup" else 2
        path = memberships.get("memory" if version == 1 else "")
        top, place = PurePosixPath(_unescape(mount["root"])), Path(_unescape(mount["place"]))
        if path is None or ".." in path.parts or not path.is_relative_to(top):
            continue
        within = place / path.relative_to(top)
        folders = [within, *within.parents][: len(within.parts) - len(place.parts) + 1]
        counting = "memory.oom_control" if version == 1 else "memory.events"
        while folders and not (folders[0] / counting).exists():
            del folders[0]
        if folders:
            limit = _number(folders[0] / "memory.limit_in_bytes") if version == 1 else None
            # In a container the top is the container's own, and is limited like any other.
            at_the_top = version == 1 and folders == [place] and (limit or 0) >= _UNLIMITED
            return Cgroup(version, tuple(folders), at_the_top)
    return None


def slurm_out_of_memory(state: str, output: str = "") -> OutOfMemory | None:
    """What Slurm itself says of it.

    state: a job's or step's state in the words of sacct, squeue or scontrol. output: what
    slurmstepd and srun have written; what the ranks have written may stand beside it.
    """
    if _SLURM_STATE.search(state):
        return OutOfMemory(True, "out of memory, in Slurm's words: state OUT_OF_MEMORY")
    said = _SLURM_LINE.search(output)
    return OutOfMemory(True, f"out of memory, in Slurm's words: {said[1]}") if said else None


def _memberships(text: str) -> Iterable[tuple[str, PurePosixPath]]:
    """(controller, path) of each line of /proc/self/cgroup; version 2 has no controller's name."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, PurePosixPath(path)


def _machine(proc: Path) -> Room | None:
    memory = _numbers(proc / "meminfo")
    free, total = memory.get("MemAvailable"), memory.get("MemTotal")
    return None if free is None or total is None else Room("machine", 1024 * free, 1024 * total)


def _rise(before: int | None, now: int | None) -> int:
    return 0 if before is None or now is None else now - before


def _numbers(path: Path) -> dict[str, int]:
    """The lines "name number" or "name: number kB" of a file of the kernel."""
    return {name: int(value) for name, value in _PAIR.findall(_text(path))}


def _number(path: Path) -> int | None:
    """The one number of a file of the kernel; None where there is none, as in "max"."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    """A file of the kernel; nothing where there is none, or it is of a process that has ended."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _unescape(field: str) -> str:
    return re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), field)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
