"""What a Slurm cluster file says: each field is a flag of sbatch, or says how the job behaves."""

import re
import unicodedata
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from igpt.clusters.base import ClusterConfig, Limits
from igpt.clusters.figures import FiguresConfig
from igpt.runs.redaction import Recorded, without_secret

#: Flags that are ours to set; `sbatch:` may not name them.
_OURS = frozenset(
    (
        *("job-name", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "time", "signal"),
        *("requeue", "no-requeue", "output", "error", "open-mode", "dependency", "chdir"),
        *("kill-on-invalid-dep", "array", "wrap", "parsable", "wait", "export", "export-file"),
        *("clusters", "time-min", "get-user-env", "test-only", "het-group", "partition", "account"),
        *("qos", "constraint", "reservation", "nodelist", "exclude", "gres", "licenses", "wckey"),
        *("comment", "exclusive", "mail-user", "mail-type", "mem", "gpus-per-node"),
    )
)
#: Fields whose text becomes a flag of the script, or a part of one.
_FLAGS = (
    *("gpus_per_node", "mem", "folder", "partition", "account", "qos", "constraint"),
    *("reservation", "nodelist", "exclude", "gres", "licenses", "wckey", "comment"),
    *("mail_user", "mail_type"),
)
#: After the ranks have saved, for the verdict and the requeue.
AFTER_SECONDS = 30

_FLAG = re.compile("[a-z][a-z0-9_-]+")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")


class SlurmCluster(ClusterConfig):
    """Configuration of a Slurm cluster."""

    kind: Literal["slurm"] = "slurm"
    workers: int = Field(default=1, ge=1, description="processes that share each batch, in all")
    nodes: int = Field(default=1, ge=1, description="machines; they share the workers evenly")
    cpus_per_worker: int = Field(default=4, ge=1, description="cores of each worker")
    gpus_per_node: int | str | None = Field(default=None, description="e.g. 8 or a100:8")
    mem: str | None = Field(default=None, description="memory of a node, e.g. 64G; 0 is all of it")
    time: str = Field(default="24:00:00", description="limit of one attempt, as sbatch takes it")
    folder: str = Field(
        default="~/.igpt-jobs/slurm", description="shared by the login node and all nodes"
    )
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    gres: str | None = None
    licenses: str | None = None
    wckey: str | None = None
    comment: Recorded | None = None
    exclusive: bool = Field(default=False, description="no other job on the nodes")
    mail_user: str | None = None
    mail_type: str | None = Field(default=None, description="e.g. END,FAIL,REQUEUE")
    sbatch: dict[str, str | int | Literal[True]] = Field(
        default_factory=dict, description="any other flag of sbatch, without its dashes"
    )
    srun_args: list[Recorded] = Field(
        default_factory=list, description="further arguments of srun, e.g. a container's"
    )
    ray: Literal["auto", "always"] = Field(
        default="auto", description="started inside the job: for what runs on Ray, or for all"
    )
    setup: list[Recorded] = Field(
        default_factory=list, description="shell lines before the ranks start, e.g. module load"
    )
    python: Recorded | None = Field(
        default=None, description="command that runs Python on the nodes; null: the client's own"
    )
    network_interface: str | None = Field(
        default=None, description="between nodes; null: the one that leads to the first node"
    )
    grace_seconds: int = Field(
        default=180, ge=10, description="before the time limit, for a last checkpoint"
    )
    heartbeat_seconds: float = Field(default=15.0, gt=0, le=15)
    figures: FiguresConfig = Field(default_factory=FiguresConfig)

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        seconds_of(value)
        return value

    @field_validator(*_FLAGS)
    @classmethod
    def _is_one_line(cls, value: Any) -> Any:
        if isinstance(value, str) and (found := _control(value)):
            raise ValueError(f"{found!r} would end the line of the flag, or damage it")
        return value

    @field_validator("sbatch")
    @classmethod
    def _are_lines(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, given in value.items():
            if found := _control(f"{key}{given}"):
                raise ValueError(f"{key!r}: {found!r} would end the line of the flag, or damage it")
            without_secret(f"{key}={given}")
        return value

    @field_validator("sbatch")
    @classmethod
    def _is_not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        names = {key: key.lstrip("-").replace("_", "-") for key in value}
        ours = sorted(key for key, name in names.items() if len(name) < 3 or name in _OURS)
        if ours:
            raise ValueError(f"{', '.join(ours)}: set by a field of its own, or by igpt-jobs")
        if odd := [key for key in value if not _FLAG.fullmatch(key)]:
            raise ValueError(f"{odd[0]!r} is no flag of sbatch: its name alone, without its dashes")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.workers % self.nodes:
            raise ValueError(f"{self.workers} workers do not share {self.nodes} nodes evenly")
        if self.grace_seconds + AFTER_SECONDS >= seconds_of(self.time):
            raise ValueError(
                f"the grace of {self.grace_seconds} s, and {AFTER_SECONDS} s to requeue the job, "
                f"leave nothing of the time limit {self.time}"
            )
        return self

    @property
    def workers_per_node(self) -> int:
        """Ranks on each node."""
        return self.workers // self.nodes

    def shared_folder(self) -> Path:
        """Where scripts, Slurm's own output and the code of submissions are kept."""
        return Path(self.folder).expanduser().absolute()

    @property
    def most_workers(self) -> int:
        """Always so many."""
        return self.workers

    def limits(self) -> Limits:
        """Its grace, its time limit and the device that the file names."""
        return Limits(self.grace_seconds, self.device, float(seconds_of(self.time)))


def _control(text: str) -> str | None:
    """The first control character of a text, such as a line break."""
    return next((letter for letter in text if unicodedata.category(letter) == "Cc"), None)


def seconds_of(time: str) -> int:
    """Seconds of a time as sbatch takes it. Raises ValueError.

    M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        raise ValueError(f"{time!r} is no time limit, such as 90, 24:00:00 or 2-12:00:00")
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, *[*parts, 0][:2]
    return ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
