"""A run's record in the store: creating it, finding it, reading it, deleting it.

    runs/<name>-<8>/spec.yaml      the job, every default written out
                    result.json    written last, once

The layout of the whole is in docs/architecture.md, "A run".
"""

import json
import platform
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import yaml

from igpt.config import Strict, load, nearest
from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.runs import events as ev
from igpt.runs.attempts import Claim, attempt_numbers, read_claims
from igpt.runs.events import LIFE, Event, event_key, read_events, timestamp, write_event
from igpt.runs.identity import check_name, run_id, work_digest
from igpt.runs.reading import read_json
from igpt.runs.state import Heartbeat, RunState, Sight, Status, derive
from igpt.storage import Store, open_store

FORMAT = 1

#: What a run that had to wait for others found when its turn came; it completes the spec.
SETTLED = "settled.json"


class Spec(Strict):
    """What a run does: written once, before anything starts."""

    format: int = FORMAT
    job: str
    name: str
    ordinal: int = 0
    config: dict[str, Any]  # the job's configuration, every default written out
    inputs: dict[str, Any]  # digests of what it reads

    @property
    def digest(self) -> str:
        """Identifies the work, whoever submits it."""
        return work_digest(self.job, self.config, self.inputs)

    @property
    def is_deferred(self) -> bool:
        """Whether it was submitted before what it reads existed."""
        return "after" in self.inputs

    @property
    def id(self) -> str:
        """The run's name in the store."""
        return run_id(self.name, self.digest, self.ordinal)


@dataclass(frozen=True)
class Run:
    """One run in a store. Cheap to make: everything is read when asked for."""

    id: str
    root: Store  # the whole store
    record: Store  # the store seen from runs/<id>
    _known: dict[str, Event] = field(default_factory=dict, repr=False, compare=False)

    @property
    def uri(self) -> str:
        """What a worker is told: the run's whole address."""
        return self.record.uri

    def spec(self) -> Spec:
        """What the run does. Raises NotFound where there is no such run."""
        spec = load(Spec, self.record.get("spec.yaml").decode(), f"{self.uri}/spec.yaml")
        settled = self._json(SETTLED) if spec.is_deferred else None
        return spec.model_copy(update=settled) if settled else spec

    def events(self, kinds: Collection[str] | None = None) -> list[Event]:
        """What happened, oldest first; `kinds` reads only these. No event is read twice."""
        return read_events(self.record, kinds, self._known)

    def last_event(self, kind: str) -> Event | None:
        """The newest event of a kind."""
        found = read_events(self.record, {kind}, self._known, last=1)
        return found[0] if found else None

    def claims(self) -> list[Claim]:
        """The attempts that owned the run, in order."""
        return read_claims(self.record)

    def result(self) -> dict[str, Any] | None:
        """What the run made; None while it has not finished."""
        return self._json("result.json")

    def heartbeat(self) -> Heartbeat | None:
        """The last sign of life, of the newest attempt."""
        numbers = attempt_numbers(self.record)
        body = self._json(f"attempts/{numbers[-1]:04d}/heartbeat.json") if numbers else None
        try:
            return Heartbeat(**body) if body else None
        except TypeError as error:
            raise DataCorrupt(f"a heartbeat of {self.uri} is damaged: {error}") from None

    def beat(self, attempt: int, phase: str, progress: dict[str, Any]) -> None:
        """Replaces the sign of life of an attempt. Of this machine, now."""
        body = {"time": time.time(), "phase": phase, "host": platform.node(), "progress": progress}
        self.record.put(f"attempts/{attempt:04d}/heartbeat.json", json.dumps(body).encode())

    def event(self, kind: str, *, writer: str, **fields: Any) -> Event:
        """Adds an event now; a change of state also leaves its hint in the index."""
        event = write_event(self.record, kind, writer=writer, time=time.time(), **fields)
        if hint := self._hint(event):
            self.root.put(hint, b"")
        return event

    def retract(self, event: Event) -> None:
        """Takes back an event that did not come about, with its hint."""
        self.record.delete([event_key(event)])
        if hint := self._hint(event):
            self.root.delete([hint])

    def status(self, *, sight: Sight | None = None, stalled_after: float = 60.0) -> Status:
        """Where the run stands.

        sight: what its backend sees of the supervisor. stalled_after: seconds of silence.
        """
        history = self.events(LIFE)
        return derive(
            self.id,
            history,
            result=self.record.exists("result.json"),
            heartbeat=self.heartbeat(),
            now=time.time(),
            sight=sight or Sight(),
            stalled_after=stalled_after,
            created=None if history else self._created(),
        )

    def delete(self) -> int:
        """Removes the run and its hints; returns how many objects that were.

        The spec goes last, so that a deletion that was cut short can be seen and repeated.
        """
        keys = [info.key for info in self.record.objects()]
        hints = [info.key for info in self.root.objects(f"index/{self.id}.")]
        self.record.delete([key for key in keys if key != "spec.yaml"])
        self.root.delete(hints)
        self.record.delete(["spec.yaml"])
        return len(keys) + len(hints)

    def _hint(self, event: Event) -> str | None:
        state = _HINTS.get(event.kind)
        if state is None or (event.kind == ev.FAILED and not event.fields.get("final")):
            return None
        return f"index/{self.id}.{timestamp(event.time)}.{state}"

    def _created(self) -> float:
        """When the spec was written, by the store's clock. Raises NotFound for what is no run."""
        for info in self.record.objects("spec.yaml"):
            return info.modified
        raise NotFound(
            f"{self.uri} holds no run", mend="igpt-jobs list shows the runs of this store"
        )

    def _json(self, key: str) -> dict[str, Any] | None:
        try:
            return read_json(self.record, key)
        except NotFound:
            return None


_HINTS = {
    ev.SUBMITTED: RunState.SUBMITTED,
    ev.LAUNCHED: RunState.QUEUED,
    ev.STARTED: RunState.RUNNING,
    ev.FAILED: RunState.FAILED,
    ev.CANCELLED: RunState.CANCELLED,
    ev.FINISHED: RunState.FINISHED,
}


def open_run(root: Store, identifier: str) -> Run:
    """The run of exactly this id, without looking whether it exists."""
    return Run(identifier, root, root.sub(f"runs/{identifier}"))


def run_at(uri: str) -> Run:
    """The run at `<store>/runs/<id>`, as whoever works on it is told. Raises UserError.

    There is such a run: a store that is a directory without anything in it is away.
    """
    root_uri, _, identifier = uri.rpartition("/runs/")
    return open_run(open_store(root_uri, in_use=True), identifier)


def create_run(
    root: Store,
    *,
    job: str,
    name: str,
    config: dict[str, Any],
    inputs: dict[str, Any],
    new: bool = False,
    status: Callable[[Run], Status],
) -> tuple[Run, bool]:
    """The run of this work, and whether it was made now.

    The same work again is the run that exists, while it is alive and once it has finished; after a
    failure or a cancellation, or with `new`, it is a run of its own. status: how a run stands.
    """
    check_name(name)
    ordinal = 0
    while True:
        spec = Spec(job=job, name=name, ordinal=ordinal, config=config, inputs=inputs)
        run = open_run(root, spec.id)
        body = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        if run.record.create("spec.yaml", body.encode()):
            return run, True
        if not new:
            state = status(run).state
            if state.active or state in (RunState.FINISHED, RunState.STALLED):
                return run, False
        ordinal += 1


def find_run(root: Store, wanted: str) -> Run:
    """The run whose id is `wanted` or begins with it. Raises NotFound, UserError if ambiguous."""
    identifiers = root.children("runs")
    matching = [one for one in identifiers if one.startswith(wanted)] if wanted else []
    if wanted in identifiers:
        matching = [wanted]
    if not matching:
        raise NotFound(
            f"there is no run {wanted!r} in {root.uri}{nearest(wanted, identifiers)}",
            mend="igpt-jobs list shows the runs of this store; --store names another",
        )
    if len(matching) > 1:
        raise UserError(
            f"{wanted!r} begins the names of {len(matching)} runs: {', '.join(matching[:5])}",
            expected="the name of one",
        )
    return open_run(root, matching[0])
