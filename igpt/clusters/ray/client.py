"""Asks a Ray cluster's job server. Looking needs neither Ray nor its SDK, and is quick.

The server is Ray's dashboard on the head node. With token authentication on, it wants the token of
the cluster, which we find where Ray itself does: RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH,
~/.ray/auth_token. It goes into the request and nowhere else, and to this machine past any proxy.
"""

import http.client
import ipaddress
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from igpt.clusters.ray.config import RayCluster
from igpt.errors import IgptError, NotFound, Unreachable, UserError

#: What the server says of a job that has ended.
OVER = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
#: Seconds that the server may take to answer a question.
ANSWER_SECONDS = 10.0


def token_of(cluster: RayCluster, environment: Mapping[str, str] = os.environ) -> str | None:
    """The cluster's token; None where there is none to find. Raises UserError."""
    given = environment.get("RAY_AUTH_TOKEN")
    if given and cluster.token_file is None:
        return _checked(given, "RAY_AUTH_TOKEN")
    named = cluster.token_file or environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or "~/.ray/auth_token").expanduser()
    try:
        return _checked(path.read_text(), str(path))
    except FileNotFoundError:
        if named is None:
            return None
        raise UserError(f"{path} with Ray's token is not there", mend=_ACCESS_MEND) from None
    except OSError as error:
        raise UserError(f"{path} with Ray's token: {error.strerror}", mend=_ACCESS_MEND) from None


def _checked(text: str, source: str) -> str:
    """A token as it goes into a request. The error does not show it."""
    token = text.strip()
    if not token or not token.isascii() or any(letter.isspace() for letter in token):
        raise UserError(f"{source} holds no token of Ray's", expected="one word", mend=_ACCESS_MEND)
    return token


def headers_of(cluster: RayCluster) -> dict[str, str]:
    """What a request carries: the token, where there is one."""
    token = token_of(cluster)
    return {"Authorization": f"Bearer {token}"} if token else {}


#: Servers that did not answer, and when: who looks at many runs waits once.
_AWAY: dict[str, tuple[float, Unreachable]] = {}
_AWAY_SECONDS = 30.0


def look_at(cluster: RayCluster, path: str) -> dict[str, Any]:
    """As `ask`, but of a server that has just not answered it is not asked again."""
    since, error = _AWAY.get(cluster.server, (-_AWAY_SECONDS, None))
    if error is not None and time.monotonic() - since < _AWAY_SECONDS:
        raise error
    try:
        return ask(cluster, path)
    except Unreachable as error:
        _AWAY[cluster.server] = (time.monotonic(), error)
        raise


def ask(cluster: RayCluster, path: str, method: str = "GET") -> dict[str, Any]:
    """The server's answer to a question, such as `/api/version`.

    Raises NotFound, or Unreachable where it does not answer, or not with what we ask for.
    """
    request = urllib.request.Request(  # noqa: S310 the address is http, by its validator
        f"{cluster.server}{path}", headers=headers_of(cluster), method=method
    )
    way = urllib.request.ProxyHandler({} if _is_local(_host(cluster)) else None)
    opener = urllib.request.build_opener(way)
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        raise refusal(cluster, error.code, error.read().decode(errors="replace")) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise unreachable(cluster, str(reason)) from None
    if not isinstance(body, dict):
        raise unreachable(cluster, "what answers there is no job server of Ray")
    return body


def session_of(cluster: RayCluster) -> str:
    """What tells one Ray cluster from another, and from itself after it was started anew."""
    return str(look_at(cluster, "/api/version").get("session_name", ""))


def job_at(cluster: RayCluster, job: str) -> dict[str, Any] | None:
    """What the server knows of a job, by its submission id; None where it knows none."""
    try:
        return look_at(cluster, f"/api/jobs/{job}")
    except NotFound:
        return None


def submit(cluster: RayCluster, wanted: dict[str, Any]) -> None:
    """Submits a job by the Jobs SDK, its folder of code packed up. Raises Unreachable."""
    # Which files are code is settled in the snapshot.
    os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    for talkative in ("dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{talkative}").setLevel(logging.WARNING)
    try:
        with _no_other(cluster):
            server = JobSubmissionClient(cluster.server, headers=headers_of(cluster))
            server.submit_job(**wanted)
    except (RuntimeError, OSError, ValueError, TypeError, RayError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"it refused the job: {lines[-1] if lines else type(error).__name__}"
        raise unreachable(cluster, reason) from None


@contextmanager
def _no_other(cluster: RayCluster) -> Iterator[None]:
    """For the SDK, which believes these variables before the address that it is given.

    It would also ask this very machine by way of a proxy.
    """
    wanted: dict[str, str | None] = {
        "RAY_API_SERVER_ADDRESS": cluster.server,
        "RAY_ADDRESS": None,
    }
    host = _host(cluster)
    if _is_local(host):
        others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        wanted |= dict.fromkeys(("no_proxy", "NO_PROXY"), f"{others},{host}" if others else host)
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _host(cluster: RayCluster) -> str:
    return urlsplit(cluster.server).hostname or ""


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _through(cluster: RayCluster) -> str:
    """Words about the proxy of the environment that our questions take, if they take one."""
    server = urlsplit(cluster.server)
    proxy = urllib.request.getproxies().get(server.scheme)
    if not proxy or _is_local(_host(cluster)) or urllib.request.proxy_bypass(server.netloc):
        return ""
    shown = proxy.rpartition("://")[2].rpartition("@")[2]  # it may hold a password
    return f" by way of the proxy {shown}, which no_proxy={_host(cluster)} would leave out"


def stop(cluster: RayCluster, job: str) -> None:
    """Ends a job that is no run, unless it has ended. Raises as `ask` does."""
    ask(cluster, f"/api/jobs/{job}/stop", method="POST")


def unreachable(cluster: RayCluster, reason: str) -> Unreachable:
    """The cluster does not answer."""
    return Unreachable(
        f"the Ray cluster at {cluster.server} cannot be reached{_through(cluster)}: {reason}",
        expected="the address of Ray's dashboard, where the job server is",
        mend="Set `address` in the cluster file; from outside, `ssh -N -L 8265:127.0.0.1:8265 HEAD`"
        " brings it to this machine",
    )


def refusal(cluster: RayCluster, status: int, said: str) -> IgptError:
    """What a refusal by the server means."""
    if status in (401, 403):
        why = "wants a token" if status == 401 else "does not know our token"
        proxy = _through(cluster)
        told = f"; asked{proxy}, it may be the proxy that says so" if proxy else ""
        return Unreachable(f"the Ray cluster at {cluster.server} {why}{told}", mend=_ACCESS_MEND)
    if status == 404 and "does not exist" in said:
        return NotFound(f"the Ray cluster at {cluster.server} knows no such thing")
    line = said.strip().splitlines()[-1:] or [f"status {status}"]
    return unreachable(cluster, line[0])


_ACCESS_MEND = (
    "Copy the cluster's token (`ray get-auth-token` on its head node) to ~/.ray/auth_token here, "
    "or name its file as `token_file`"
)
