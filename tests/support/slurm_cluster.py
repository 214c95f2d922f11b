"""A real Slurm of several nodes on this machine, started and stopped by the tests.

A node is a set of Linux namespaces (processes, network, mounts, host name) with a slurmd in it, so
it has its own name, address and cable. The cables meet in a switch, which is a namespace too; the
controller runs beside the tests and has a cable of its own. The file system is shared by all.

Nothing of the machine is changed, clusters live side by side, and the kernel takes everything away
with the process that started it. Needs root.
"""

import secrets
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.slurm import MACHINE, PATH, Node, Slurm, missing, process_namespace, until

#: Seconds that a requeued job waits before it may start again. Slurm takes less than five for an
#: error and then waits for its default of 120.
_CREDENTIAL_SECONDS = 5

_SLURM = """
ClusterName=igpt
SlurmctldHost=controller({gateway})
CommunicationParameters=NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={credential_seconds}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
MessageTimeout=5
KillWait=5
JobRequeue=1
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/{storage}
AccountingStorageHost={gateway}
AccountingStoragePort={database_port}
AccountingStoragePass={folder}/munge.socket
NodeName=DEFAULT CPUs={cpus} RealMemory=8000 State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""

_ACCOUNTING = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=controller
DbdAddr={gateway}
DbdPort={database_port}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""

_SWITCH = """
ip link add switch type bridge
ip link set switch up
echo ready
exec sleep infinity
"""

#: A daemon of the controller takes the controller's name.
_CONTROLLER = """
hostname controller
mount --bind "$FOLDER/hosts" /etc/hosts
exec "$@"
"""
_DAEMON = ("unshare", "--mount", "--uts", "sh", "-c", _CONTROLLER, "sh")

#: The first process of a node, with which all others end. It waits for the cable, and knows no
#: other names than those of the cluster: an unknown one fails at once.
_NODE = """
echo ready
read -r cable
exec </dev/null >>"$FOLDER/$NAME.output" 2>&1
set -e
hostname "$NAME"
mount --bind "$FOLDER/hosts" /etc/hosts
[ ! -e /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf
ip link set lo up
ip address add "$ADDRESS/24" dev eth0
ip link set eth0 up
ip route add default via "$GATEWAY"
slurmd -D -N "$NAME" &
wait $!
"""


class SlurmCluster(Slurm):
    """A cluster of one's own, until `stop`: nodes n1, n2 ..., partitions `main` and `high`."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 2,
        cpus: int = 4,
        accounting: bool = False,
        settings: Sequence[str] = (),
    ) -> None:
        """settings: further lines of slurm.conf; of two for one name the last one counts."""
        super().__init__(folder, gateway="", nodes={})
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.cpus = cpus  # of each node, as many as one likes
        self.accounting = accounting
        self.settings = settings
        self._processes: dict[str, subprocess.Popen[str]] = {}
        # The kernel ends our processes with the thread that started them, so that one must last.
        self._thread = ThreadPoolExecutor(max_workers=1)

    def start(self) -> None:
        """Returns when all nodes are idle; raises RuntimeError where that cannot be."""
        if reason := missing(accounting=self.accounting):
            raise RuntimeError(reason)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._connect()
            self._configure()
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self.start_controller()
            for name in self.names:
                self.start_node(name)
            until(self.idle, f"idle nodes, see {self.folder}", 60.0, self._check)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends every process of the cluster, its jobs' too. The network goes with them."""
        for name in reversed(list(self._processes)):
            self._end(name)
        for name in self.nodes:
            self._await_end(name)
        self._thread.shutdown()

    def cut(self, name: str) -> None:
        """Pulls a node's cable. What runs there goes on."""
        self._switch("link", "set", name, "down")

    def mend(self, name: str) -> None:
        """Plugs the cable in again; the node registers at once and not within its minute."""
        self._switch("link", "set", name, "up")
        for pid in self.pids(name, f"slurmd -D -N {name}"):
            subprocess.run(["kill", "-HUP", str(pid)], check=True)

    def kill_node(self, name: str) -> None:
        """Ends a node as a power failure does: at once, without a last word on the network."""
        self._switch("link", "delete", name)
        self._end(name)
        self._await_end(name)

    def start_node(self, name: str) -> None:
        """Boots a node, for the first time or after `kill_node`. It registers by itself."""
        variables = {"NAME": name, "ADDRESS": self._address(name), "GATEWAY": self.gateway}
        process = self._boot(name, _NODE, variables)
        namespace = process_namespace(process.pid, "pid_for_children")
        assert namespace is not None
        self.nodes[name] = Node(name, self._address(name), namespace)
        plug = ("type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        self._switch("link", "add", name, *plug)
        self._switch("link", "set", name, "master", "switch", "up")
        assert process.stdin
        with process.stdin:
            process.stdin.write("cable\n")

    def start_controller(self) -> None:
        """Starts slurmctld, which goes on from the state that it saved."""
        self._spawn("slurmctld", *_DAEMON, "slurmctld", "-D")
        until(lambda: self.run("scontrol", "ping").returncode == 0, "slurmctld", 60.0, self._check)

    def stop_controller(self, *, crash: bool = False) -> None:
        """Ends slurmctld. In a crash it forgets what happened in its last five seconds or so."""
        if not crash:
            self._processes["slurmctld"].terminate()
            self._processes["slurmctld"].wait(timeout=60)
        self._end("slurmctld")

    def _connect(self) -> None:
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
        _do("ip", "address", "add", f"{self.gateway}/24", "dev", cable)
        _do("ip", "link", "set", cable, "up")

    def _address(self, node: str) -> str:
        return f"{self.gateway.rpartition('.')[0]}.{100 + self.names.index(node)}"

    def _configure(self) -> None:
        hosts = ["127.0.0.1 localhost", f"{self.gateway} controller {socket.gethostname()}"]
        hosts += [f"{self._address(name)} {name}" for name in self.names]
        values = {
            "folder": self.folder,
            "gateway": self.gateway,
            "credential_seconds": _CREDENTIAL_SECONDS,
            "storage": "slurmdbd" if self.accounting else "none",
            "database_port": 7000 + int(self.gateway.split(".")[2]),  # it listens everywhere
            "cpus": self.cpus,
            "nodes": "\n".join(
                f"NodeName={name} NodeAddr={self._address(name)}" for name in self.names
            ),
        }
        (self.folder / "state").mkdir()
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        lines = [_SLURM.format(**values), *self.settings, ""]
        (self.folder / "slurm.conf").write_text("\n".join(lines))
        for name, data in {
            "slurmdbd.conf": _ACCOUNTING.format(**values).encode(),
            "munge.key": secrets.token_bytes(128),
        }.items():
            (self.folder / name).touch(0o600)
            (self.folder / name).write_bytes(data)

    def _start_munge(self) -> None:
        """A munge of its own. It is forced: the folder may be closed to all but root."""
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{name}" for option, name in files.items()]
        self._spawn("munged", "munged", "--foreground", "--force", "--num-threads=10", *options)
        until((self.folder / "munge.socket").exists, "munged", 60.0, self._check)

    def _start_accounting(self) -> None:
        """A database, slurmdbd on top of it, and the cluster's entry there."""
        database = self.folder / "mariadb.socket"
        common = ("--no-defaults", "--user=root", f"--datadir={self.folder}/database")
        login = "--auth-root-authentication-method=normal"
        _do("mariadb-install-db", *common, login, "--skip-test-db")
        self._spawn("mariadbd", "mariadbd", *common, "--skip-networking", f"--socket={database}")
        until(database.exists, "mariadbd", 60.0, self._check)
        self._spawn("slurmdbd", *_DAEMON, "slurmdbd", "-D", MYSQL_UNIX_PORT=str(database))
        entry = ("sacctmgr", "--immediate", "add", "cluster", "igpt")
        until(lambda: self.run(*entry).returncode == 0, "slurmdbd", 60.0, self._check)

    def _boot(self, name: str, script: str, variables: dict[str, str]) -> "subprocess.Popen[str]":
        """A machine of its own, once its first process is there."""
        process = self._spawn(name, *MACHINE, "sh", "-c", script, talks=True, **variables)
        assert process.stdout
        with process.stdout:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{name} did not start: {self._output(name)}")
        return process

    def _spawn(
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

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def _await_end(self, node: str) -> None:
        until(lambda: not self.pids(node), f"the end of all processes of {node}")

    def _check(self) -> None:
        """Raises RuntimeError where a process of the cluster has ended by itself."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended ({process.returncode}): {self._output(name)}")

    def _output(self, name: str) -> str:
        return (self.folder / f"{name}.output").read_text(errors="replace")[-2000:]

    def _switch(self, *arguments: str) -> None:
        network = f"--net=/proc/{self._processes['switch'].pid}/ns/net"
        _do("nsenter", network, "ip", *arguments)


def _try(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env={"PATH": PATH}, capture_output=True, text=True, check=False)


def _do(*command: str) -> None:
    done = _try(*command)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
