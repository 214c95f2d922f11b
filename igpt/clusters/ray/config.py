"""What a Ray cluster file says: where the cluster is, and what each worker of a run gets there."""

import os
import shlex
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from igpt.clusters.base import ClusterConfig, Limits
from igpt.config import Strict, WithheldValue
from igpt.jobs.estimate import counted
from igpt.runs.redaction import Recorded, written_secret

#: Where Ray's dashboard, and with it the Jobs server, is on the head node.
LOCAL_ADDRESS = "http://127.0.0.1:8265"


class Elastic(Strict):
    """As many workers as there is room for, within bounds."""

    min: int = Field(ge=1, description="fewer, and the run waits")
    max: int = Field(ge=1, description="more are never asked for")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class RayCluster(ClusterConfig):
    """Configuration of a Ray cluster."""

    kind: Literal["ray"] = "ray"
    address: str | None = Field(
        default=None, description="of the dashboard; null: RAY_API_SERVER_ADDRESS, or this machine"
    )
    token_file: str | None = Field(
        default=None, description="where Ray's token is; null: where Ray itself looks"
    )
    workers: int | Elastic = Field(
        default=1, description="processes that share each batch: a number, or {min, max}"
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="cores; also its CPU threads")
    gpus_per_worker: int = Field(default=0, ge=0, description="a worker uses one")
    resources_per_worker: dict[str, float] = Field(
        default_factory=dict, description="other resources of Ray's, by name"
    )
    accelerator_type: str | None = Field(default=None, description="e.g. A100, as Ray writes it")
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        default="PACK", description="Ray's strategy for the workers"
    )
    resize_seconds: float = Field(
        default=60.0, gt=0, description="from one look for room for more workers to the next"
    )
    python: Recorded = Field(
        default="python", description="runs the driver; ranks have the Python that Ray has"
    )
    variables: dict[str, str] = Field(
        default_factory=dict, description="environment of all processes; no secrets"
    )
    network_interface: str | None = Field(
        default=None, description="between nodes; null: the one that leads to the first worker"
    )
    grace_seconds: float = Field(
        default=120.0, gt=0, description="for a checkpoint after being asked to stop"
    )

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, value: int | Elastic) -> int | Elastic:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least 1")
        return value

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("the dashboard's address, such as http://head-node:8265")
        if parts.username or parts.password:
            raise ValueError("no user or password in it: Ray wants a token, in `token_file`")
        return value

    @field_validator("resources_per_worker")
    @classmethod
    def _are_others(cls, value: dict[str, float]) -> dict[str, float]:
        ours = sorted(name for name in value if name in ("CPU", "GPU", "TPU", "memory"))
        if ours:
            raise ValueError(f"no {', '.join(ours)} here: set cpus_per_worker and gpus_per_worker")
        if any(amount <= 0 for amount in value.values()):
            raise ValueError("amounts are greater than 0")
        return value

    @field_validator("python")
    @classmethod
    def _is_a_command(cls, value: str) -> str:
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise ValueError(f"a command, such as python3: {error}") from None
        if not words:
            raise ValueError("a command, such as python3")
        return value

    @field_validator("variables")
    @classmethod
    def _has_no_secret(cls, value: dict[str, str]) -> dict[str, str]:
        if "CUDA_VISIBLE_DEVICES" in value:
            raise ValueError("no CUDA_VISIBLE_DEVICES: Ray sets it, by gpus_per_worker")
        # Ray shows a job's environment to everybody who can look at its jobs.
        secret = sorted(name for name, text in value.items() if written_secret(f"{name}={text}"))
        if secret:
            raise WithheldValue(
                f"no secrets, such as {', '.join(secret)}: Ray shows these to everybody; give the "
                "nodes their credentials where Ray is started"
            )
        return value

    @property
    def most_workers(self) -> int:
        """Ranks that share each batch, at most."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def least_workers(self) -> int:
        """With fewer the run waits."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def server(self) -> str:
        """The address of the dashboard, as it is reached from here."""
        found = self.address or os.environ.get("RAY_API_SERVER_ADDRESS") or LOCAL_ADDRESS
        return found.rstrip("/")

    def each(self) -> dict[str, float]:
        """What Ray reserves for each worker."""
        reserved: dict[str, float] = {"CPU": self.cpus_per_worker}
        if self.gpus_per_worker:
            reserved["GPU"] = self.gpus_per_worker
        if self.accelerator_type:  # Ray's own way to ask for a kind of device
            reserved[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return reserved | self.resources_per_worker

    @property
    def wanted(self) -> str:
        """The workers of a run, in words."""
        if isinstance(self.workers, int):
            return f"{counted(self.workers, 'worker')} x {self.each_in_words}"
        both = f"{self.workers.min} to {self.workers.max}"
        return f"{both} workers, as there is room, x {self.each_in_words}"

    @property
    def each_in_words(self) -> str:
        """What Ray reserves for each worker, for people."""
        return ", ".join(f"{amount:g} {name}" for name, amount in self.each().items())

    def limits(self) -> Limits:
        """Its grace, and the device that the file names."""
        return Limits(self.grace_seconds, self.device)
