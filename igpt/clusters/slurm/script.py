"""The sbatch script of a run, written by submitit: what --dry-run shows is what is submitted.

The ranks' parent is called by its module and not through submitit's pickle: a pickle is moved into
place after sbatch has answered, and a client that dies in between would leave a job that cannot
start. So a job needs nothing from the client but the run's address.
"""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor

from igpt.clusters.base import Launch
from igpt.clusters.slurm.config import AFTER_SECONDS, SlurmCluster
from igpt.clusters.slurm.place import code_folder, job_folder
from igpt.clusters.slurm.turn import START_MARK
from igpt.runs.failures import REQUEUE
from igpt.runs.shipped import CODE

#: What sbatch takes from the environment before it looks into the script (`man sbatch`, INPUT
#: ENVIRONMENT VARIABLES), and is ours to decide whatever the cluster file says.
_OURS = ("ARRAY_INX", "CLUSTERS", "EXPORT", "GET_USER_ENV", "NO_REQUEUE", "REQUEUE", "WAIT")
#: Flags whose variables are not called as they are, or that others would contradict.
_SPELLED = {
    "cpus-per-task": ("CPUS_PER_TASK", "CPUS_PER_GPU"),
    "gpus-per-node": ("GPUS_PER_NODE", "GPUS", "GPUS_PER_TASK"),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "switches": ("REQ_SWITCH", "WAIT4SWITCH"),
    "time": ("TIMELIMIT",),
}
#: A strict `setup` is not meant for our lines: the verdict comes after ranks that have failed.
_LENIENT = "set +eu +o pipefail; trap - ERR"


class Executor(SlurmExecutor):
    """submitit's executor, which writes the script and calls sbatch.

    `text` rests on private methods of submitit 1.5; the tests compare what they give with files.
    """

    @classmethod
    def affinity(cls) -> int:
        """Always: to show a script needs no Slurm."""
        return 2

    def text(self, command: str) -> str:
        """The script that `submit_command` submits."""
        return self._make_submission_file_text(command, "")

    def submit_command(self, command: str) -> str:
        """Submits what `text` shows; returns the job's id.

        Variables that would overrule the script, or are of a job that we are in, are left out.
        """
        without = overruling(self.text(command))
        hidden = {
            name: os.environ.pop(name)
            for name in list(os.environ)
            if name in without or _is_of_a_job(name)
        }
        try:
            return str(self._submit_command(command).job_id)
        finally:
            os.environ.update(hidden)


def overruling(text: str) -> frozenset[str]:
    """The variables with which sbatch would not do as the script says.

    Those of flags that the script does not have are not among them: they stay the user's defaults.
    """
    flags = re.findall(r"^#SBATCH --([\w-]+)", text, re.MULTILINE)
    names = (_SPELLED.get(flag, (flag.upper().replace("-", "_"),)) for flag in flags)
    return frozenset(f"SBATCH_{name}" for name in (*_OURS, *(one for own in names for one in own)))


def _is_of_a_job(name: str) -> bool:
    if name.startswith(("SLURM_", "SRUN_")):
        # All of Slurm's commands heed these two alike.
        return name not in ("SLURM_CONF", "SLURM_CLUSTERS")
    return name == CODE


def executor(cluster: SlurmCluster, launch: Launch) -> Executor:
    """The executor with all parameters of a launch."""
    folder = job_folder(cluster, launch.run_uri)
    made = Executor(folder)
    made.update_parameters(**parameters(cluster, launch, folder))
    return made


def parameters(cluster: SlurmCluster, launch: Launch, folder: Path) -> dict[str, Any]:
    """The parameters of sbatch under submitit's names; None leaves a flag out."""
    flags: dict[str, Any] = {key: _flag(value) for key, value in cluster.sbatch.items()}
    flags |= {"requeue": True, "chdir": str(folder)}
    # Not submitit's `signal_delay_s`: a variable of its own would make it another signal.
    flags["signal"] = f"USR2@{cluster.grace_seconds + AFTER_SECONDS}"
    for name in ("reservation", "licenses"):
        if getattr(cluster, name) is not None:
            flags[name] = getattr(cluster, name)
    dependency = None
    if launch.after:
        dependency = "afterok:" + ":".join(launch.after)
        flags["kill-on-invalid-dep"] = "yes"
    per_node = cluster.workers_per_node * cluster.cpus_per_worker
    return {
        "job_name": launch.run_id,
        "time": cluster.time,
        "nodes": cluster.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": per_node,
        "gpus_per_node": cluster.gpus_per_node,
        "mem": cluster.mem,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodelist": cluster.nodelist,
        "exclude": cluster.exclude,
        "gres": cluster.gres,
        "wckey": cluster.wckey,
        "comment": cluster.comment,
        "exclusive": True if cluster.exclusive else None,
        "mail_user": cluster.mail_user,
        "mail_type": cluster.mail_type,
        "dependency": dependency,
        "additional_parameters": flags,
        # One task a node is the ranks' parent; Slurm 22 and later do not hand the cores of the job
        # on to its steps.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={per_node}", *cluster.srun_args],
        "setup": setup(cluster, launch),
        "teardown": ['igpt_settle "$?"'],
    }


def setup(cluster: SlurmCluster, launch: Launch) -> list[str]:
    """Shell lines before the ranks start; those of the cluster file come last."""
    code = code_folder(cluster, launch.code)
    reach = sorted(launch.environment.items())
    lines = [
        f'echo "{START_MARK} $SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" >&2',
        "# Slurm's warnings are for the ranks; this shell lives on to say how it ended.",
        "trap : USR2 TERM",
        # Where the site or the user has SBATCH_EXPORT=NONE, the steps are still to have ours.
        "export SLURM_EXPORT_ENV=ALL",
        f"export IGPT_FOLDER={shlex.quote(str(job_folder(cluster, launch.run_uri)))}",
        # Else `python -m` looks into its working directory before PYTHONPATH.
        "export PYTHONSAFEPATH=1",
        *(f"export {name}={shlex.quote(value)}" for name, value in reach),
    ]
    if code is not None:
        lines.append(f"export {CODE}={shlex.quote(str(code))}")
        lines.append(f'export PYTHONPATH="${CODE}${{PYTHONPATH:+:$PYTHONPATH}}"')
    lines += _settling(cluster, launch)
    return [*lines, *cluster.setup, "igpt_ready=yes", _LENIENT]


def _settling(cluster: SlurmCluster, launch: Launch) -> list[str]:
    """The function that ends the script: the verdict, and the requeue where it says so.

    Called with the exit code of the ranks; by the trap, where `setup` has ended the shell, with
    that of its last command and the command.
    """
    return [
        "igpt_ready= igpt_settled=",
        "igpt_settle() {",
        f"  {_LENIENT}",
        '  [ -z "$igpt_settled" ] || exit "$1"  # it has called the trap',
        "  igpt_settled=yes",
        "  code=$1",
        '  if [ -z "$igpt_ready" ]; then',
        '    echo "igpt-jobs: setup ended with exit code $code (last command: $2)" >&2',
        # What is not a signal would mean something else as the exit code of the ranks.
        '    [ "$code" -gt 128 ] || code=1',
        "  fi",
        # A container may have no Slurm commands.
        '  export IGPT_SLURM_JOB="$(scontrol show job --oneliner "$SLURM_JOB_ID")"',
        f'  {after_command(cluster, launch)} "$code"',
        "  code=$?",
        f"  # {REQUEUE}: saved, or worth another try. The controller may be away for a while.",
        f'  if [ "$code" -eq {REQUEUE} ]; then',
        "    for pause in 5 10 20 40 80 160 0; do",
        '      if state="$(scontrol show job --oneliner "$SLURM_JOB_ID")"; then',
        '        case "$state" in',
        '          *" Restarts=${SLURM_RESTART_COUNT:-0} "*) ;;',
        "          *) break ;;  # Slurm itself has done so",
        "        esac",
        '        scontrol requeue "$SLURM_JOB_ID" && break',
        "      fi",
        '      sleep "$pause"',
        "    done",
        "  fi",
        '  exit "$code"',
        "}",
        """trap 'igpt_settle "$?" "$BASH_COMMAND"' EXIT""",
    ]


def node_command(cluster: SlurmCluster, launch: Launch) -> str:
    """What srun starts on each node."""
    return _python(cluster, "igpt.clusters.slurm.node", launch)


def after_command(cluster: SlurmCluster, launch: Launch) -> str:
    """What the script calls when the ranks have ended; inside the container where there is one."""
    command = _python(cluster, "igpt.clusters.slurm.after", launch)
    if any(word.startswith("--container") for word in cluster.srun_args):
        step = ["srun", "--nodes=1", "--ntasks=1", "--overlap", *cluster.srun_args]
        return f"{shlex.join(step)} {command}"
    return command


def _python(cluster: SlurmCluster, module: str, launch: Launch) -> str:
    python = cluster.python or shlex.quote(sys.executable)
    return f"{python} -u -m {module} {shlex.join([launch.run_uri, str(launch.attempt)])}"


def _flag(value: str | int | bool) -> Any:
    return value if value is True else str(value)
