"""What happened to a run, as small immutable objects whose names sort by time.

`events/<time>-<writer>-<kind>.json`: the client, the supervisor and the workers all write, and an
object store has no append, so every event is an object of its own.
"""

import json
import os
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from igpt.errors import DataCorrupt
from igpt.runs.reading import read_json
from igpt.storage import Store

#: The life of a run, in words. Others (checkpointed, validated) are progress within an attempt.
SUBMITTED = "submitted"  # the intent: written before anything is started
LAUNCHED = "launched"  # a supervisor is there; carries its host and process id
STARTED = "started"  # an attempt has claimed the run
CHECKPOINTED = "checkpointed"
PIECES = "pieces"  # where an attempt keeps its finished pieces, and how many were there before it
FAILED = "failed"  # an attempt ended badly; `final` says whether that was the last
PREEMPTED = "preempted"  # an attempt was asked to stop and did, after its checkpoint
REQUEUED = "requeued"
SUPERSEDED = "superseded"
CANCEL_REQUESTED = "cancel-requested"
CANCELLED = "cancelled"
FINISHED = "finished"

#: What decides how a run stands. Everything else is progress, and there may be thousands of it.
LIFE = frozenset(
    {
        SUBMITTED,
        LAUNCHED,
        STARTED,
        FAILED,
        PREEMPTED,
        REQUEUED,
        SUPERSEDED,
        CANCEL_REQUESTED,
        CANCELLED,
        FINISHED,
    }
)


@dataclass(frozen=True)
class Event:
    """One thing that happened. `time` is in seconds since the epoch, by the writer's clock."""

    time: float
    writer: str
    kind: str
    fields: dict[str, Any]

    @property
    def attempt(self) -> int | None:
        """The attempt it belongs to, where it belongs to one."""
        number = self.fields.get("attempt")
        return number if isinstance(number, int) else None


def timestamp(time: float) -> str:
    """`20261124T101620.123456Z`: sorts as text the way it sorts in time."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def write_event(run: Store, kind: str, *, writer: str, time: float, **fields: Any) -> Event:
    """Adds an event to a run's record. `writer` is a word: client, supervisor, worker."""
    event = Event(time, f"{writer}.{os.getpid()}.{secrets.token_hex(2)}", kind, fields)
    body = {"time": time, "writer": event.writer, "kind": kind, **fields}
    run.put(event_key(event), json.dumps(body, indent=1).encode())
    return event


def event_key(event: Event) -> str:
    """Where an event stands."""
    return f"events/{timestamp(event.time)}-{event.writer}-{event.kind}.json"


def read_events(
    run: Store,
    kinds: Collection[str] | None = None,
    known: dict[str, Event] | None = None,
    *,
    last: int = 0,
) -> list[Event]:
    """The events of a run, oldest first; `kinds` reads only these, `last` only so many of the end.

    known: events by name, read before; it grows. They never change, so none is read twice.
    """
    known = {} if known is None else known
    wanted = [name for name in run.children("events") if kinds is None or event_kind(name) in kinds]
    for name in wanted[-last:]:
        if name not in known:
            body = read_json(run, f"events/{name}")
            try:
                time, writer, kind = body.pop("time"), body.pop("writer"), body.pop("kind")
            except KeyError as missing:
                raise DataCorrupt(f"{run.uri}/events/{name} lacks {missing}") from None
            known[name] = Event(float(time), str(writer), str(kind), body)
    return sorted((known[name] for name in wanted[-last:]), key=lambda event: event.time)


def event_kind(name: str) -> str:
    """The kind of an event by its name, `<time>-<writer>-<kind>.json`."""
    return name.removesuffix(".json").split("-", 2)[-1]
