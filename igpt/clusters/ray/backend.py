"""Submits runs to a Ray cluster, looks at them there, cancels them.

The job's submission id follows from the run and the attempt, and Ray takes none twice: so a client
that dies in between can be repeated, and never submits twice.
"""

import hashlib
import json
import logging
import shlex
import time
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from igpt.clusters.base import Launch, Plan
from igpt.clusters.dashboard import Dashboard, write_dashboard
from igpt.clusters.ray import client
from igpt.clusters.ray.config import RayCluster
from igpt.errors import IgptError, Unreachable
from igpt.runs import Run, snapshot
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers
from igpt.runs.state import Sight
from igpt.storage.cache import cache_directory

log = logging.getLogger("igpt")

#: A sign of life so young is one.
_FRESH_SECONDS = 60.0


class RayBackend:
    """A job of Ray is the supervisor of a run, attempt after attempt."""

    def __init__(self, cluster: RayCluster) -> None:
        self.cluster = cluster

    def plan(self, launch: Launch) -> Plan:
        """The submission, as the Jobs SDK gets it."""
        cluster = self.cluster
        facts = {"cluster": f"ray at {cluster.server}: {cluster.wanted}"}
        code = None if launch.code is None else f"<the code {launch.code[:12]}>"
        job = f"{launch.run_id}-<8 characters>-a{launch.attempt}"
        return Plan(facts, json.dumps(submission(cluster, launch, job, code), indent=2))

    def check(self) -> None:
        """Raises where the cluster does not answer, or does not take our token."""
        client.ask(self.cluster, "/api/version")

    def submit(self, run: Run, launch: Launch) -> dict[str, Any]:
        """Submits the job and records its id."""
        cluster = self.cluster
        self.check()
        code = None
        if launch.code is not None:
            code = snapshot.unpack(run.root, launch.code, cache_directory() / "code")
        job = job_id(run, launch.attempt)
        wanted = submission(cluster, launch, job, None if code is None else str(code))
        try:
            client.submit(cluster, wanted)
        except Unreachable as error:
            # Ray may have taken it all the same, or an earlier client has submitted this attempt.
            if client.job_at(cluster, job) is None:
                mend = f"igpt-jobs resume {run.id} tries again"
                raise Unreachable(error.what, mend=mend) from None
        session = client.session_of(cluster)
        body = {"job": job, "server": cluster.server, "session": session}
        write_dashboard(run, launch.attempt, dashboard_of(cluster, job))
        run.event(ev.LAUNCHED, writer="client", attempt=launch.attempt, **body)
        return body

    def jobs_of(self, runs: Sequence[Run]) -> tuple[str, ...]:
        """None: the driver itself looks at the runs that it waits for."""
        return ()

    def look(self, run: Run) -> Sight:
        """What Ray says of the run's job."""
        found = self._job(run)
        try:
            said = client.job_at(self.cluster, found) if found else None
        except IgptError as error:
            return Sight(None, reason=error.what)
        if said is None:
            return self._forgotten(run, found)
        state = str(said.get("status"))
        if state in client.OVER:
            return Sight(False, reason=f"Ray job {found} is {state}{_last_word(said)}")
        return Sight(True, state == "PENDING", f"Ray job {found} is {state}")

    def cancel(self, run: Run) -> bool:
        """The driver and the ranks find the request in the record within seconds."""
        return bool(self.look(run).alive)

    def _forgotten(self, run: Run, job: str | None) -> Sight:
        """What it means that the server at our address knows no job of the run."""
        launched = run.last_event(ev.LAUNCHED)
        if launched is None or launched.fields.get("job") != job:
            return Sight(None)
        try:
            session = client.session_of(self.cluster)
        except IgptError as error:
            return Sight(None, reason=error.what)
        home = launched.fields.get("session")
        beat = run.heartbeat()
        if session != home and beat is not None and time.time() - beat.time < _FRESH_SECONDS:
            return Sight(None, reason=f"another Ray cluster answers at {self.cluster.server}")
        # One that was started anew has forgotten its jobs, and they are gone.
        return Sight(False, reason=f"Ray knows no job {job}")

    def _job(self, run: Run) -> str | None:
        """The newest job of the run: that of the last submission, as later attempts are its own."""
        submitted = [event.attempt or 0 for event in run.events({ev.SUBMITTED})]
        numbers = submitted or attempt_numbers(run.record)
        return job_id(run, max(numbers)) if numbers else None


def job_id(run: Run, attempt: int) -> str:
    """The submission id of an attempt's job.

    Equal work has equal run ids, in another store or after it was deleted, and Ray takes no id
    twice: so where and when the run was begun is in it.
    """
    submitted = [event.time for event in run.events({ev.SUBMITTED})]
    begun = f"{run.uri} {submitted[0] if submitted else ''}"
    return f"{run.id}-{hashlib.sha256(begun.encode()).hexdigest()[:8]}-a{attempt}"


def submission(cluster: RayCluster, launch: Launch, job: str, code: str | None) -> dict[str, Any]:
    """What the Jobs SDK is called with. Nothing in it is secret: Ray shows it to everybody.

    code: the folder with the code of the submission; None: the nodes have it installed.
    """
    module = "igpt.clusters.ray.driver"
    command = [*shlex.split(cluster.python), "-u", "-m", module, launch.run_uri]
    runtime: dict[str, Any] = {"env_vars": {**launch.environment, **cluster.variables}}
    if code is not None:
        runtime |= {"working_dir": code, "excludes": [".git"]}
    return {
        "entrypoint": shlex.join([*command, str(launch.attempt)]),
        "submission_id": job,
        "runtime_env": runtime,
        "metadata": {"run": launch.run_id, "attempt": str(launch.attempt)},
    }


def dashboard_of(cluster: RayCluster, job: str) -> Dashboard:
    """Where Ray's dashboard shows a job."""
    server = urlsplit(cluster.server)
    host = server.hostname or ""
    port = server.port or (443 if server.scheme == "https" else 80)
    scheme: Literal["http", "https"] = "https" if server.scheme == "https" else "http"
    return Dashboard(host, host, port, path=f"#/jobs/{job}", scheme=scheme)


def _last_word(said: dict[str, Any]) -> str:
    """The last line of what Ray says of a job's end."""
    lines = [line.strip() for line in str(said.get("message") or "").splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines and said.get("status") == "FAILED" else ""
