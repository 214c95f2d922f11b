"""Whether a rank that was killed was out of memory: recorded texts, and the kernel itself."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from igpt.clusters.ranks.memory import Cgroup, MemoryWatch, find_cgroup, slurm_out_of_memory
from tests.support import study

GIB = 2**30
PID = 21131

STATUS = (
    "Name:\tpython\nState:\tR (running)\nVmPeak:\t30000000 kB\nVmHWM:\t{peak} kB\nThreads:\t9\n"
)

MEMINFO = """MemTotal:       25165824 kB
MemFree:         1754440 kB
MemAvailable:   {available} kB
Active(file):    1234567 kB
"""

V1_CGROUP = """11:cpuset:/slurm/uid_0/job_5/step_0
4:memory:/slurm/uid_0/job_5/step_0/task_0
1:name=systemd:/system.slice/slurmd.service
0::/system.slice/slurmd.service
"""

V1_MOUNTS = """31 23 0:28 / {root}/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / {root}/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / {root}/cgroup/memory rw,relatime shared:16 - cgroup cgroup rw,memory
41 31 0:38 / {root}/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""

V1_CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"

V2_CGROUP = "0::/system.slice/slurmstepd.scope/job_12/step_0/user/task_0\n"

V2_MOUNTS = (
    "30 23 0:26 / {root}/cgroup rw,nosuid,nodev,noexec,relatime shared:4 "
    "- cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
)

V2_EVENTS = "low 0\nhigh 0\nmax 2431\noom {kills}\noom_kill {kills}\noom_group_kill 0\n"


class Machine:
    """A machine of 24 GiB as its kernel shows it, in a folder; and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        self.time = 1000.0
        self.write("proc/self/cgroup", "")
        self.memory(available=20 * GIB)
        self.killed_on_the_machine(7)
        self.rank(peak=GIB)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def memory(self, *, available: int) -> None:
        self.write("proc/meminfo", MEMINFO.format(available=available // 1024))

    def killed_on_the_machine(self, kills: int) -> None:
        self.write("proc/vmstat", f"nr_free_pages 438610\noom_kill {kills}\nnr_unstable 0\n")

    def rank(self, *, peak: int) -> None:
        self.write(f"proc/{PID}/status", STATUS.format(peak=peak // 1024))

    def watch(self) -> MemoryWatch:
        return MemoryWatch(self.proc, lambda: self.time)

    def pass_seconds(self, watch: MemoryWatch, seconds: int) -> None:
        for _ in range(seconds):
            self.time += 1
            watch.sample([PID])

    def rank_dies(self) -> None:
        self.write(f"proc/{PID}/status", "Name:\tpython\nState:\tZ (zombie)\nThreads:\t1\n")


class SlurmCgroups(Machine):
    """The same with the cgroups that Slurm makes: the job may use 8 GiB."""

    version: int

    def task(self, name: str, text: str) -> None:
        self.write(f"{self.own}/{name}", text)

    def killed_in_the_cgroup(self, kills: int) -> None:
        raise NotImplementedError

    def usage(self, used: int, files: int = 0) -> None:
        raise NotImplementedError


class V1(SlurmCgroups):
    version = 1
    job = "cgroup/memory/slurm/uid_0/job_5"
    own = f"{job}/step_0/task_0"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write("proc/self/cgroup", V1_CGROUP)
        self.write("proc/self/mountinfo", V1_MOUNTS.format(root=root))
        for folder in (self.own, self.job, "cgroup/memory"):
            self.write(f"{folder}/memory.oom_control", V1_CONTROL.format(kills=3))
            self.write(f"{folder}/memory.limit_in_bytes", "9223372036854771712\n")
        self.write(f"{self.job}/memory.limit_in_bytes", f"{8 * GIB}\n")
        self.usage(GIB)

    def killed_in_the_cgroup(self, kills: int) -> None:
        self.task("memory.oom_control", V1_CONTROL.format(kills=kills))

    def usage(self, used: int, files: int = 0) -> None:
        self.write(f"{self.job}/memory.usage_in_bytes", f"{used}\n")
        stat = f"inactive_file 0\nactive_file 0\ntotal_inactive_file {files}\ntotal_active_file 0\n"
        self.write(f"{self.job}/memory.stat", f"cache {files}\n{stat}")


class V2(SlurmCgroups):
    version = 2
    job = "cgroup/system.slice/slurmstepd.scope/job_12"
    # The controller is not handed down to the task: its processes are counted in the level above.
    own = f"{job}/step_0/user"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write("proc/self/cgroup", V2_CGROUP)
        self.write("proc/self/mountinfo", V2_MOUNTS.format(root=root))
        self.write(f"{self.own}/task_0/cgroup.procs", "")
        for folder in (self.own, self.job):
            self.write(f"{folder}/memory.events", V2_EVENTS.format(kills=3))
            self.write(f"{folder}/memory.max", "max\n")
        self.write(f"{self.job}/memory.max", f"{8 * GIB}\n")
        self.usage(GIB)

    def killed_in_the_cgroup(self, kills: int) -> None:
        self.task("memory.events", V2_EVENTS.format(kills=kills))

    def usage(self, used: int, files: int = 0) -> None:
        self.write(f"{self.job}/memory.current", f"{used}\n")
        self.write(f"{self.job}/memory.stat", f"anon 1\ninactive_file 0\nactive_file {files}\n")


@pytest.fixture(params=[V1, V2])
def cgroups(request: pytest.FixtureRequest, tmp_path: Path) -> SlurmCgroups:
    machine: SlurmCgroups = request.param(tmp_path)
    return machine


def test_the_own_cgroup_is_found_where_its_kills_are_counted(cgroups: SlurmCgroups) -> None:
    found = find_cgroup(cgroups.proc)
    assert found is not None
    assert (found.version, found.folders[0]) == (cgroups.version, cgroups.root / cgroups.own)
    assert cgroups.root / cgroups.job in found.folders
    assert found.kills() == 3


def test_a_kill_in_the_own_cgroup_is_certain_and_names_the_limit(cgroups: SlurmCgroups) -> None:
    watch = cgroups.watch()
    cgroups.rank(peak=int(7.9 * GIB))
    cgroups.pass_seconds(watch, 3)
    cgroups.rank_dies()
    cgroups.killed_in_the_cgroup(4)
    verdict = watch.verdict(PID)
    assert verdict is not None
    assert verdict.certain
    assert verdict.reason == (
        "killed by the kernel for want of memory "
        "(cgroup limit 8.0 GiB; its own size had reached 7.9 GiB)"
    )


def test_a_rank_that_dies_before_it_was_ever_seen_is_judged_too(cgroups: SlurmCgroups) -> None:
    watch = cgroups.watch()
    cgroups.killed_in_the_cgroup(4)
    verdict = watch.verdict(PID)
    assert verdict is not None
    assert verdict.certain
    assert "its own size is unknown" in verdict.reason


def test_a_kill_counted_while_the_rank_was_still_dying_is_its_own(cgroups: SlurmCgroups) -> None:
    watch = cgroups.watch()
    cgroups.pass_seconds(watch, 100)
    cgroups.killed_in_the_cgroup(4)
    cgroups.pass_seconds(watch, 5)
    verdict = watch.verdict(PID)
    assert verdict is not None
    assert verdict.certain


def test_a_kill_long_ago_explains_nothing(cgroups: SlurmCgroups) -> None:
    watch = cgroups.watch()
    cgroups.killed_in_the_cgroup(4)
    cgroups.killed_on_the_machine(8)
    cgroups.pass_seconds(watch, 40)
    assert watch.verdict(PID) is None


def test_a_kill_elsewhere_on_the_machine_is_not_ours_where_our_cgroup_counts(
    cgroups: SlurmCgroups,
) -> None:
    watch = cgroups.watch()
    cgroups.pass_seconds(watch, 3)
    cgroups.killed_on_the_machine(8)
    assert watch.verdict(PID) is None


def test_a_full_cgroup_without_a_counted_kill_is_probable(cgroups: SlurmCgroups) -> None:
    watch = cgroups.watch()
    cgroups.rank(peak=int(7.8 * GIB))
    cgroups.usage(int(7.9 * GIB))
    cgroups.pass_seconds(watch, 3)
    cgroups.rank_dies()
    cgroups.usage(GIB // 10)
    cgroups.pass_seconds(watch, 1)  # a look between its end and the question changes nothing
    verdict = watch.verdict(PID)
    assert verdict is not None
    assert not verdict.certain
    assert verdict.reason == (
        "probably out of memory: killed by signal 9 while 102 MiB of 8.0 GiB of the cgroup were "
        "free; its own size had reached 7.8 GiB"
    )


def test_what_the_cache_of_files_holds_counts_as_free(cgroups: SlurmCgroups) -> None:
    watch = cgroups.watch()
    cgroups.usage(8 * GIB, files=3 * GIB)
    cgroups.pass_seconds(watch, 3)
    assert watch.verdict(PID) is None


def test_without_cgroups_a_kill_on_the_machine_is_probable(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    watch = machine.watch()
    machine.pass_seconds(watch, 3)
    machine.killed_on_the_machine(8)
    verdict = watch.verdict(PID)
    assert verdict is not None
    assert not verdict.certain
    assert verdict.reason == (
        "probably out of memory: killed by signal 9 just as the kernel killed 1 process on this "
        "machine for want of memory; its own size had reached 1.0 GiB"
    )


def test_the_top_of_the_machine_is_everybodys_and_makes_nothing_certain(tmp_path: Path) -> None:
    machine = V1(tmp_path)
    machine.write("proc/self/cgroup", "4:memory:/\n")
    watch = machine.watch()
    machine.write("cgroup/memory/memory.oom_control", V1_CONTROL.format(kills=4))
    machine.killed_on_the_machine(8)
    verdict = watch.verdict(PID)
    assert verdict is not None
    assert not verdict.certain


def test_a_container_that_sees_only_its_own_cgroup_is_certain(tmp_path: Path) -> None:
    machine = V1(tmp_path)
    # As in a container without a namespace of cgroups: the mount begins below the machine's top.
    machine.write("proc/self/cgroup", "4:memory:/docker/0123abcd\n")
    mounts = f"35 31 0:32 /docker/0123abcd {tmp_path}/in\\040side ro - cgroup cgroup rw,memory\n"
    machine.write("proc/self/mountinfo", mounts)
    machine.write("in side/memory.oom_control", V1_CONTROL.format(kills=3))
    machine.write("in side/memory.limit_in_bytes", f"{4 * GIB}\n")
    watch = machine.watch()
    machine.write("in side/memory.oom_control", V1_CONTROL.format(kills=4))
    verdict = watch.verdict(PID)
    assert verdict is not None
    assert verdict.certain


def test_a_full_machine_is_probable_on_a_kernel_that_counts_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write("proc/vmstat", "nr_free_pages 438610\n")
    watch = machine.watch()
    machine.memory(available=GIB)
    machine.rank(peak=int(21.3 * GIB))
    machine.pass_seconds(watch, 2)
    verdict = watch.verdict(PID)
    assert verdict is not None
    assert not verdict.certain
    assert "while 1.0 GiB of 24.0 GiB of the machine were free" in verdict.reason
    assert verdict.reason.endswith("its own size had reached 21.3 GiB")


def test_where_the_kernel_shows_nothing_there_is_no_verdict(tmp_path: Path) -> None:
    watch = MemoryWatch(tmp_path / "nothing")
    watch.sample([PID])
    assert watch.verdict(PID) is None


# A parent as that of a node's ranks: one rank is killed by hand, one asks for more than is allowed.
PARENT = """
import json, os, signal, subprocess, sys, time
with open(sys.argv[1], "w") as procs:
    procs.write(str(os.getpid()))
from igpt.clusters.ranks.memory import MemoryWatch
GREEDY = '''
with open("/proc/self/oom_score_adj", "w") as score:
    score.write("1000")
kept = []
print("up", flush=True)
input()
while True:
    kept.append(b"x" * 2**20)
'''
def verdict(end):
    watch = MemoryWatch()
    rank = subprocess.Popen(
        [sys.executable, "-c", GREEDY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    rank.stdout.readline()
    watch.sample([rank.pid])
    end(rank)
    while rank.poll() is None:
        watch.sample([rank.pid])
        time.sleep(0.01)
    found = watch.verdict(rank.pid)
    return [rank.returncode, found and [found.certain, found.reason]]
def feed(rank):
    rank.stdin.write(b"go\\n")
    rank.stdin.flush()
print(json.dumps([verdict(lambda rank: rank.kill()), verdict(feed)]))
"""


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of the test's own that may use 256 MiB."""
    found = find_cgroup()
    if found is None:
        pytest.skip("this machine has no memory cgroups")
    folder = found.folders[-1] / f"igpt-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        limit_to(folder, found, 256 * 2**20)
        yield folder
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        study.until(lambda: not (folder / "cgroup.procs").read_text(), "the cgroup is empty", 30)
        folder.rmdir()


def limit_to(folder: Path, found: Cgroup, size: int) -> None:
    """Limits a cgroup, and keeps what does not fit from being swapped out."""
    one = found.version == 1
    limit = folder / ("memory.limit_in_bytes" if one else "memory.max")
    swap = folder / ("memory.memsw.limit_in_bytes" if one else "memory.swap.max")
    try:
        limit.write_text(str(size))
    except OSError as error:
        pytest.skip(f"the memory of a cgroup cannot be limited here: {error}")
    if swap.exists():
        swap.write_text(str(size) if one else "0")


def test_the_kernels_kill_is_told_from_a_hands(small_cgroup: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PARENT, str(small_cgroup / "cgroup.procs")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    by_hand, by_the_kernel = json.loads(ended.stdout)
    assert by_hand == [-signal.SIGKILL, None]
    code, (certain, reason) = by_the_kernel
    assert code == -signal.SIGKILL
    assert certain
    assert reason.startswith(
        "killed by the kernel for want of memory (cgroup limit 256 MiB; its own size had reached "
    )


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            "slurmstepd: error: Detected 1 oom-kill event(s) in step 370626.batch cgroup. Some of "
            "your processes may have been killed by the cgroup out-of-memory handler.",
            "Detected 1 oom-kill event(s) in step 370626.batch",
        ),
        (
            "slurmstepd: error: Detected 12 oom-kill event(s) in StepId=16198179.batch. Some of "
            "your processes may have been killed by the cgroup out-of-memory handler.",
            "Detected 12 oom-kill event(s) in StepId=16198179.batch",
        ),
        (
            "slurmstepd-n001: error: Detected 1 oom_kill event in StepId=115104+0.0. Some of the "
            "step tasks have been OOM Killed.",
            "Detected 1 oom_kill event in StepId=115104+0.0",
        ),
        (
            "[2026-09-14T17:14:38.784] error: Detected 2 oom_kill events in StepId=22035606.1. "
            "Some of the step tasks have been OOM Killed.",
            "Detected 2 oom_kill events in StepId=22035606.1",
        ),
        ("srun: error: o0616: task 0: Out Of Memory", "o0616: task 0: Out Of Memory"),
        ("srun: error: n1: tasks 0-2,5: Out Of Memory", "n1: tasks 0-2,5: Out Of Memory"),
        (
            "slurmstepd: error: StepId=7.batch exceeded memory limit (734003200 > 52428800), "
            "being killed",
            "StepId=7.batch exceeded memory limit (734003200 > 52428800), being killed",
        ),
    ],
)
def test_slurms_lines_are_understood_in_all_versions(output: str, words: str) -> None:
    found = slurm_out_of_memory("FAILED", f"step 3 loss 2.1\n{output}\nbye\n")
    assert found is not None
    assert found.certain
    assert found.reason == f"out of memory, in Slurm's words: {words}"


@pytest.mark.parametrize(
    "state", ["OUT_OF_MEMORY", "OUT_OF_ME+", "JobState=OUT_OF_MEMORY Reason=OutOfMemory", "OOM"]
)
def test_slurms_state_is_understood_in_every_form(state: str) -> None:
    assert slurm_out_of_memory(state) is not None


@pytest.mark.parametrize(
    "output",
    [
        "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-24T10:15:11 DUE TO PREEMPTION ***",
        "srun: error: n1: task 0: Killed",
        "slurmstepd: error: Detected 0 oom-kill event(s) in StepId=7.batch.",
        "slurmstepd: Memory: StepId=7.0 hit memory limit at least once during execution.",
        "worker: error: Detected 1 oom-kill event(s) in a line that Slurm did not write",
        "RuntimeError: CUDA_ERROR_OUT_OF_MEMORY",
    ],
)
def test_other_words_are_not_slurms_word_for_it(output: str) -> None:
    assert slurm_out_of_memory("FAILED", output) is None
