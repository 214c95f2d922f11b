"""Word of a run's change of state, by a command or a webhook that its supervisor runs.

What is said is built here as plain data (`Message`, `document`, `text`, `environment`); `notify`
sends it, returns what went wrong as lines for the log, never raises, and takes ten seconds at most:
a run must not suffer for its news. A message may be lost, and in rare cases comes twice.

The cluster file is recorded with the run, and the address of a webhook is often its key. So it is
given by the name of an environment variable, read where the supervisor runs; only an address on
the machine itself may be written out. No address is ever part of a problem's line. A command finds
what it must keep secret in its environment, too.

There is no word of a stalled run: it is stalled because the one who would send it is gone.
"""

import ipaddress
import json
import math
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from igpt.config import Strict
from igpt.runs.redaction import without_secret

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

State = Literal["started", "preempted", "requeued", "finished", "failed", "cancelled"]

#: How long `notify` may take in all.
SECONDS = 10.0

_ENVIRONMENT = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_TRIES = 3
_PAUSE_SECONDS = 0.5  # before the second try; doubled before the third
_TIDY_SECONDS = 0.5  # for a sender whose time is up to say so
_SHOWN = 200  # characters of a command's last words


class NotifyConfig(Strict):
    """Whom to tell of what."""

    on: tuple[State, ...] = Field(
        default=("finished", "failed"),
        description="started, preempted, requeued (an attempt ended, the next one comes), "
        "finished, failed (for good), cancelled",
    )
    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="program and arguments, run without a shell: a JSON document on its standard "
        "input, the same as IGPT_RUN, IGPT_STATE, IGPT_REASON ... in its environment",
    )
    webhook: str | None = Field(
        default=None,
        description="env:NAME, the variable with the URL that gets the document by POST; or a URL "
        "on this machine",
    )

    @field_validator("command")
    @classmethod
    def _holds_no_secret(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        without_secret(" ".join(value or ()))
        return value

    @model_validator(mode="after")
    def _no_secret_is_written_down(self) -> Self:
        # Of the whole model: an error about the field alone would show the URL.
        if self.webhook is None or _ENVIRONMENT.fullmatch(self.webhook):
            return self
        problem = _malformed(self.webhook)
        if problem or not _is_local(self.webhook) or "?" in self.webhook:
            raise ValueError(
                "webhook is written out in a file that is recorded with the run, and such a URL is "
                "often a secret; expected env:NAME, with the URL in the environment variable NAME "
                "where the run is supervised, or http://localhost..."
            )
        return self


@dataclass(frozen=True)
class Message:
    """One change of state. What is not known is None or empty."""

    run: str
    uri: str
    state: State
    time: float  # seconds since the epoch
    host: str
    reason: str = ""
    next: str = ""  # what happens now, or what the user can do
    attempt: int | None = None
    step: int | None = None
    total: int | None = None  # steps in all
    loss: float | None = None  # nats per token


def text(message: Message) -> str:
    """The message for people: up to three lines."""
    facts = []
    if message.attempt is not None:
        facts.append(f"attempt {message.attempt}")
    if message.step is not None:
        facts.append(f"step {message.step}" + (f" of {message.total}" if message.total else ""))
    if message.loss is not None:
        facts.append(f"loss {message.loss:.4f}")
    head = f"{message.run} {message.state}" + (f" ({', '.join(facts)})" if facts else "")
    return "\n".join(line for line in (head, message.reason, message.next) if line)


def document(message: Message) -> dict[str, Any]:
    """The message for programs: every field, and `text`, which Slack and its like show."""
    finite = message.loss is not None and math.isfinite(message.loss)
    # JSON has no word for what a diverged loss is; the text says it.
    return {"text": text(message), **asdict(message), "loss": message.loss if finite else None}


def environment(message: Message) -> dict[str, str]:
    """The same as environment variables; what is not known is not set."""
    fields = {"text": text(message), **asdict(message)}
    return {
        f"IGPT_{name.upper()}": str(value).replace("\0", " ")
        for name, value in fields.items()
        if value is not None and value != ""
    }


def notify(config: NotifyConfig, message: Message, seconds: float = SECONDS) -> list[str]:
    """Sends the message where the configuration wants it; returns what went wrong, a line each.

    seconds: how long it may take in all.
    """
    if message.state not in config.on:
        return []
    deadline = time.monotonic() + seconds
    senders: dict[str, Callable[[], str | None]] = {}
    if config.command:
        senders["command"] = partial(_run, config.command, message, deadline)
    if config.webhook:
        senders["webhook"] = partial(_post, config.webhook, message, deadline)
    outcomes: dict[str, str | None] = {}
    # Threads, as the look-up of a name knows no time limit; daemons, as nobody waits for them.
    threads = [
        threading.Thread(target=_send, args=(name, send, outcomes), daemon=True)
        for name, send in senders.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline + _TIDY_SECONDS - time.monotonic()))
    late = f"no answer within {seconds:g} s"
    problems = {name: outcomes.get(name, late) for name in senders}
    return [
        f"notification of {message.state} by {name}: {problem}"
        for name, problem in problems.items()
        if problem
    ]


def _send(name: str, send: Callable[[], str | None], outcomes: dict[str, str | None]) -> None:
    try:
        outcomes[name] = send()
    except Exception as error:
        # Whatever it is, it must not reach the run; its words might hold the address.
        outcomes[name] = type(error).__name__


def _run(command: tuple[str, ...], message: Message, deadline: float) -> str | None:
    """Runs the command to its end or to the deadline; returns the problem, if there is one."""
    # Files rather than pipes: what the command leaves running may keep them open.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write(json.dumps(document(message)).encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                command,
                stdin=given,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment(message)},
                start_new_session=True,
            )
        except OSError as error:
            return f"{command[0]} cannot be run: {error.strerror}"
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"{command[0]} had not ended in time and was killed{_last_words(said)}"
        return f"{command[0]} ended with exit code {code}{_last_words(said)}" if code else None


def _last_words(said: IO[bytes]) -> str:
    said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:_SHOWN]}" if lines else ""


def _post(webhook: str, message: Message, deadline: float) -> str | None:
    """Posts the document, up to three times; returns the last problem, if there is one."""
    url = webhook
    if named := _ENVIRONMENT.fullmatch(webhook):
        url = os.environ.get(named[1], "").strip()
        if not url:
            return f"{named[1]} is not set where the run is supervised"
        if problem := _malformed(url):
            return f"the URL in {named[1]} {problem}"
    opener = _opener(url)
    body = json.dumps(document(message), allow_nan=False).encode()
    pause = _PAUSE_SECONDS
    for left in reversed(range(_TRIES)):
        problem, passing = _post_once(opener, url, body, deadline)
        if not problem or not passing or not left or time.monotonic() + pause > deadline:
            break
        time.sleep(pause)
        pause *= 2
    return problem


def _post_once(
    opener: "OpenerDirector", url: str, body: bytes, deadline: float
) -> tuple[str | None, bool]:
    """The problem, if there is one, and whether it may pass.

    After a timeout nothing is sent again: the message may have arrived.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import Request

    request = Request(url, body, {"Content-Type": "application/json", "User-Agent": "igpt-jobs"})  # noqa: S310 (checked)
    try:
        with opener.open(request, timeout=max(0.1, deadline - time.monotonic())):
            return None, False
    except HTTPError as error:
        error.close()
        known = {status.value: status.phrase for status in HTTPStatus}
        passing = error.code == HTTPStatus.TOO_MANY_REQUESTS or error.code >= 500
        return f"answered {error.code} {known.get(error.code, '')}".rstrip(), passing
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):
            return "no answer in time", False
        # The system's words for it: those of Python may hold the address.
        words = cause.strerror if isinstance(cause, OSError) and cause.strerror else None
        return words or type(cause).__name__, True


def _opener(url: str) -> "OpenerDirector":
    """Through the proxy of the environment, but for this machine; follows no redirection."""
    from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener

    class Stay(HTTPRedirectHandler):
        def redirect_request(self, *unused: object) -> None:
            """A POST that is sent on would arrive as a GET, without the message."""

    return build_opener(Stay(), ProxyHandler({} if _is_local(url) else None))


def _malformed(url: str) -> str | None:
    """What is wrong with a URL, in words that do not hold it."""
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        plain = False
    if not plain or not re.fullmatch(r"[!-~]+", url):
        return "is not one of http:// or https://"
    if "@" in parts.netloc:
        return "holds a user name or a password, which is not supported"
    return None


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
