"""Machines of their own on this one: each with its name, its address and a cable that can be cut.

A machine is a set of Linux namespaces (processes, network, mounts, host name). The cables meet in
a switch, which is a namespace too; the machine of the tests has a cable of its own. The file system
is shared by all, but for /dev/shm: there programs name things by process ids, which are not unique
among machines, and what a killed one leaves would be in the way of a later test.

Nothing of the real machine is changed, and the kernel takes everything away with the process that
started it. Needs root.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Where the daemons are, also for a user whose own path lacks the administrator's folders.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The namespaces of a machine of its own: mounts, host name, network and processes.
MACHINE = ("unshare", "--mount-proc", "--uts", "--net", "--pid", "--kill-child")
PACKAGES = {"ip": "iproute2", "unshare": "util-linux"}

_SWITCH = """
ip link add switch type bridge
ip link set switch up
echo ready
exec sleep infinity
"""

#: The first process of a machine, with which all others end. It waits for the cable, and knows no
#: other names than those of its neighbours: an unknown one fails at once.
_MACHINE = """
echo ready
read -r cable
exec </dev/null >>"$FOLDER/$NAME.output" 2>&1
set -e
hostname "$NAME"
mount --bind "$FOLDER/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 shm /dev/shm
[ ! -e /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf
ip link set lo up
ip address add "$ADDRESS/24" dev eth0
ip link set eth0 up
ip route add default via "$GATEWAY"
"""


@dataclass(frozen=True)
class Node:
    """A machine as seen from that of the tests."""

    name: str
    address: str
    namespace: int  # the number of its process namespace
    pid: int  # of its first process, as numbered outside


class Machines:
    """Machines on one switch, until `stop`. `daemon` is what each of them runs."""

    #: The last lines of a machine's first process.
    daemon = ""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = list(names)
        self.gateway = ""  # where the machines reach that of the tests
        self.nodes: dict[str, Node] = {}
        self._processes: dict[str, subprocess.Popen[str]] = {}
        # The kernel ends our processes with the thread that started them, so that one must last.
        self._thread = ThreadPoolExecutor(max_workers=1)

    def environment(self) -> dict[str, str]:
        """What every process of the machines finds in its environment."""
        return {}

    def stop(self) -> None:
        """Ends every process of the machines. The network goes with them."""
        for name in reversed(list(self._processes)):
            self.end(name)
        for name in self.nodes:
            self._await_end(name)
        self._thread.shutdown()

    def cut(self, name: str) -> None:
        """Pulls a machine's cable. What runs there goes on."""
        self._switch("link", "set", name, "down")

    def plug(self, name: str) -> None:
        """Plugs the cable in again."""
        self._switch("link", "set", name, "up")

    def kill_node(self, name: str) -> None:
        """Ends a machine as a power failure does: at once, without a last word on the network."""
        self._switch("link", "delete", name)
        self.end(name)
        self._await_end(name)

    def start_node(self, name: str, **variables: str) -> None:
        """Boots a machine, for the first time or after `kill_node`."""
        given = {"NAME": name, "ADDRESS": self.address(name), "GATEWAY": self.gateway, **variables}
        process = self._boot(name, _MACHINE + self.daemon, given)
        namespace = process_namespace(process.pid, "pid_for_children")
        assert namespace is not None
        self.nodes[name] = Node(name, self.address(name), namespace, process.pid)
        plug = ("type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        self._switch("link", "add", name, *plug)
        self._switch("link", "set", name, "master", "switch", "up")
        assert process.stdin
        with process.stdin:
            process.stdin.write("cable\n")

    def connect(self) -> None:
        """Makes the switch, and the cable from it to the machine of the tests.

        The cable's name is the whole machine's: who creates it owns the network of that number.
        198.18.0.0/15 is set aside for such tests (RFC 2544), so nobody else uses it.
        """
        switch = self._boot("switch", _SWITCH, {})
        for number in range(1, 255):
            cable = f"igpt{number}"
            plug = ("type", "veth", "peer", "name", "uplink", "netns", str(switch.pid))
            made = _try("ip", "link", "add", cable, *plug)
            if made.returncode == 0:
                break
            if "File exists" not in made.stderr:
                raise RuntimeError(f"there is no cable to the switch: {made.stderr.strip()}")
        else:
            raise RuntimeError("all networks for clusters are taken, see `ip link`")
        self.gateway = f"198.18.{number}.1"
        self._switch("link", "set", "uplink", "master", "switch", "up")
        do("ip", "address", "add", f"{self.gateway}/24", "dev", cable)
        do("ip", "link", "set", cable, "up")
        hosts = ["127.0.0.1 localhost", f"{self.gateway} controller {socket.gethostname()}"]
        hosts += [f"{self.address(name)} {name}" for name in self.names]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")

    def address(self, name: str) -> str:
        """A machine's address on the switch."""
        return f"{self.gateway.rpartition('.')[0]}.{100 + self.names.index(name)}"

    def pids(self, node: str, command: str = "") -> list[int]:
        """A machine's processes whose command line has `command`, as numbered outside of it."""
        return pids_in(self.nodes[node].namespace, command)

    def spawn(
        self, name: str, *command: str, talks: bool = False, **variables: str
    ) -> "subprocess.Popen[str]":
        """Starts a process that the kernel ends at the latest with this one."""
        given = {"PATH": PATH, "FOLDER": str(self.folder), **self.environment(), **variables}

        def start() -> "subprocess.Popen[str]":
            with (self.folder / f"{name}.output").open("ab") as output:
                return subprocess.Popen(
                    ("setpriv", "--pdeathsig", "KILL", *command),
                    env=given,
                    cwd=self.folder,
                    stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if talks else output,
                    stderr=output,
                    text=True,
                )

        self._processes[name] = process = self._thread.submit(start).result()
        return process

    def end(self, name: str) -> None:
        """Ends one of the processes; a machine is one, with all that runs on it."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raises RuntimeError where one of the processes has ended by itself."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended ({process.returncode}): {self._output(name)}")

    def _boot(
        self, name: str, script: str, variables: Mapping[str, str]
    ) -> "subprocess.Popen[str]":
        """A machine of its own, once its first process is there."""
        process = self.spawn(name, *MACHINE, "sh", "-c", script, talks=True, **variables)
        assert process.stdout
        with process.stdout:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{name} did not start: {self._output(name)}")
        return process

    def _await_end(self, node: str) -> None:
        until(lambda: not self.pids(node), f"the end of all processes of {node}")

    def _output(self, name: str) -> str:
        return (self.folder / f"{name}.output").read_text(errors="replace")[-2000:]

    def _switch(self, *arguments: str) -> None:
        network = f"--net=/proc/{self._processes['switch'].pid}/ns/net"
        do("nsenter", network, "ip", *arguments)


def missing(packages: Mapping[str, str], what: str) -> str | None:
    """What this machine lacks for machines of their own and these commands; None: nothing.

    packages: of each command that is needed, the package that brings it.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        return f"{what} for the tests needs Linux and root"
    needed = {**PACKAGES, **packages}
    absent = [command for command in needed if shutil.which(command, path=PATH) is None]
    if absent:
        lacking = " ".join(sorted({needed[command] for command in absent}))
        return f"there is no {', '.join(absent)}: apt-get install --no-install-recommends {lacking}"
    trial = subprocess.run([*MACHINE, "true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        return (
            "namespaces are not permitted here (in a container: run it privileged): "
            f"{trial.stderr.strip()}"
        )
    return None


def until(
    condition: Callable[[], object],
    what: str,
    seconds: float = 60.0,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Waits for something that must come; fails with `what`, or earlier as `check` does."""
    deadline = time.monotonic() + seconds
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


def pids_in(namespace: int, command: str = "") -> list[int]:
    """The processes of a process namespace whose command line has `command`."""
    return [
        int(entry.name)
        for entry in os.scandir("/proc")
        if entry.name.isdigit()
        and process_namespace(int(entry.name)) == namespace
        and command in _command_line(int(entry.name))
    ]


def process_namespace(pid: int, kind: str = "pid") -> int | None:
    """The number of a process's namespace; None where it is gone or not ours to see."""
    with suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    return None


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1")
    return ""


def _try(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env={"PATH": PATH}, capture_output=True, text=True, check=False)


def do(*command: str) -> None:
    """Runs a command that has to succeed."""
    done = _try(*command)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
