"""Where Ray's dashboard shows a run, as whoever brought the run to Ray has written it down.

    attempts/<n>/dashboard.json

Written by the client that submits to a Ray cluster, and by the job that starts Ray inside Slurm. A
dashboard ends with its Ray: what is written here says where it was, not that it is there.
"""

import json
import shlex
import time
from dataclasses import asdict, dataclass, field
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from igpt.errors import DataCorrupt, NotFound
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers

#: Ray's own choice, and where a tunnel begins on the user's machine.
PORT = 8265


@dataclass(frozen=True)
class Dashboard:
    """One dashboard of Ray, and how it is reached."""

    host: str  # the node's name
    address: str  # the node's IP address or name, as it is reached directly
    port: int = PORT
    path: str = ""  # the run's own page, such as "#/jobs/<submission id>"
    through: Literal["direct", "ssh"] = "direct"
    login: str | None = None  # the host to ssh through; None where only the user knows it
    scheme: Literal["http", "https"] = "http"
    time: float = field(default_factory=time.time)  # when it was written down, since the epoch


def dashboard_key(attempt: int) -> str:
    """Where the dashboard of an attempt is written down."""
    return f"attempts/{attempt:04d}/dashboard.json"


def write_dashboard(run: Run, attempt: int, dashboard: Dashboard) -> None:
    """Writes down where an attempt is shown."""
    run.record.put(dashboard_key(attempt), json.dumps(asdict(dashboard)).encode())


def read_dashboard(run: Run) -> Dashboard | None:
    """The newest dashboard since the run was last submitted or resumed; None where there is none.

    The attempts that a supervisor starts itself stay with its Ray; one that the user resumed may be
    anywhere. Raises DataCorrupt.
    """
    submitted = run.last_event(ev.SUBMITTED)
    first = submitted.attempt or 0 if submitted else 0
    for attempt in reversed(attempt_numbers(run.record)):
        if attempt < first:
            break
        key = dashboard_key(attempt)
        try:
            return TypeAdapter(Dashboard).validate_json(run.record.get(key), strict=True)
        except NotFound:
            continue
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the whole"
            raise DataCorrupt(f"{run.uri}/{key} is damaged: {where}: {problem['msg']}") from None
    return None


def tunnel(dashboard: Dashboard) -> tuple[str, str | None]:
    """The address to open, and the command that has to run meanwhile; None where none has to."""
    if dashboard.through == "direct":
        name = f"[{dashboard.address}]" if ":" in dashboard.address else dashboard.address
        return f"{dashboard.scheme}://{name}:{dashboard.port}/{dashboard.path}", None
    ends = shlex.quote(f"{PORT}:{dashboard.host}:{dashboard.port}")
    command = f"ssh -N -L {ends} {shlex.quote(dashboard.login or 'LOGIN')}"
    return f"{dashboard.scheme}://127.0.0.1:{PORT}/{dashboard.path}", command
