"""A real Slurm of several nodes on this machine, started and stopped by the tests.

A node is one of `tests.support.machines` with a slurmd on it; the controller runs beside the tests.
Clusters live side by side. Needs root.
"""

import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.machines import Machines, do, until
from tests.support.slurm import Slurm, missing

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
MessageTimeout=20
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

#: A daemon of the controller takes the controller's name.
_CONTROLLER = """
hostname controller
mount --bind "$FOLDER/hosts" /etc/hosts
exec "$@"
"""
_DAEMON = ("unshare", "--mount", "--uts", "sh", "-c", _CONTROLLER, "sh")


class SlurmCluster(Slurm, Machines):
    """A cluster of one's own, until `stop`: nodes n1, n2 ..., partitions `main` and `high`."""

    daemon = 'slurmd -D -N "$NAME" &\nwait $!\n'

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
        Machines.__init__(self, folder, [f"n{number}" for number in range(1, nodes + 1)])
        self.cpus = cpus  # of each node, as many as one likes
        self.accounting = accounting
        self.settings = settings

    def start(self) -> None:
        """Returns when all nodes are idle; raises RuntimeError where that cannot be."""
        if reason := missing(accounting=self.accounting):
            raise RuntimeError(reason)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.connect()
            self._configure()
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self.start_controller()
            for name in self.names:
                self.start_node(name)
            until(self.idle, f"idle nodes, see {self.folder}", 60.0, self.check)
        except BaseException:
            self.stop()
            raise

    def mend(self, name: str) -> None:
        """Plugs the cable in again; the node registers at once and not within its minute."""
        self.plug(name)
        for pid in self.pids(name, f"slurmd -D -N {name}"):
            subprocess.run(["kill", "-HUP", str(pid)], check=True)

    def start_controller(self) -> None:
        """Starts slurmctld, which goes on from the state that it saved."""
        self.spawn("slurmctld", *_DAEMON, "slurmctld", "-D")
        until(lambda: self.run("scontrol", "ping").returncode == 0, "slurmctld", 60.0, self.check)

    def stop_controller(self, *, crash: bool = False) -> None:
        """Ends slurmctld. In a crash it forgets what happened in its last five seconds or so."""
        if not crash:
            self._processes["slurmctld"].terminate()
            self._processes["slurmctld"].wait(timeout=60)
        self.end("slurmctld")

    def _configure(self) -> None:
        values = {
            "folder": self.folder,
            "gateway": self.gateway,
            "credential_seconds": _CREDENTIAL_SECONDS,
            "storage": "slurmdbd" if self.accounting else "none",
            "database_port": 7000 + int(self.gateway.split(".")[2]),  # it listens everywhere
            "cpus": self.cpus,
            "nodes": "\n".join(
                f"NodeName={name} NodeAddr={self.address(name)}" for name in self.names
            ),
        }
        (self.folder / "state").mkdir()
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
        self.spawn("munged", "munged", "--foreground", "--force", "--num-threads=10", *options)
        until((self.folder / "munge.socket").exists, "munged", 60.0, self.check)

    def _start_accounting(self) -> None:
        """A database, slurmdbd on top of it, and the cluster's entry there."""
        database = self.folder / "mariadb.socket"
        common = ("--no-defaults", "--user=root", f"--datadir={self.folder}/database")
        login = "--auth-root-authentication-method=normal"
        do("mariadb-install-db", *common, login, "--skip-test-db")
        self.spawn("mariadbd", "mariadbd", *common, "--skip-networking", f"--socket={database}")
        until(database.exists, "mariadbd", 60.0, self.check)
        self.spawn("slurmdbd", *_DAEMON, "slurmdbd", "-D", MYSQL_UNIX_PORT=str(database))
        entry = ("sacctmgr", "--immediate", "add", "cluster", "igpt")
        until(lambda: self.run(*entry).returncode == 0, "slurmdbd", 60.0, self.check)
