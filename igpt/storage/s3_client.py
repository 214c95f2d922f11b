"""The connection to an S3 server, and what its errors mean for the user.

There is one client per process and settings, made at first use. A client is shared by threads, and
made anew after a fork, and when its credentials were refused or there were none: who asks again
asks with those that are there then. Requests are tried four times with growing pauses: a server
that refuses connections, or that no packet reaches, is given up after 15 seconds; one that accepts
a request and never answers, after 45.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import exceptions
from botocore.config import Config
from s3transfer.exceptions import RetriesExceededError

from igpt.errors import Unreachable, UserError
from igpt.storage.settings import S3Settings

_CONFIG = Config(
    connect_timeout=2,
    read_timeout=10,
    retries={"mode": "standard", "total_max_attempts": 4},
    max_pool_connections=32,
    user_agent_extra="igpt-jobs",
)

_REFUSED_KEYS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_REFUSED_RIGHTS = {"403", "AccessDenied", "AccountProblem", "AllAccessDisabled", "Forbidden"}
_OTHER_REGION = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidRegion",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on this machine, or name a profile of"
    " ~/.aws/credentials in IGPT_S3_PROFILE"
)
#: The client of some settings, and the credentials that it signs with, where there are any.
_clients: dict[S3Settings, tuple[Any, Any]] = {}
_lock = threading.Lock()


def s3_client(settings: S3Settings) -> Any:
    """The process's boto3 client for these settings, with credentials that are fresh.

    Raises UserError for an endpoint or a region that cannot be, Unreachable for credentials that
    cannot be fetched, and what boto3 raises.
    """
    found = _clients.get(settings)
    if found is None:
        with _lock:
            found = _clients.get(settings)  # another thread may have been first
            if found is None:
                found = _clients[settings] = _connect(settings)
    client, credentials = found
    if credentials is not None:
        # Otherwise the request would fetch them, and a file that they lack look like one of ours.
        with _fetched(settings):
            credentials.get_frozen_credentials()
    return client


def _connect(settings: S3Settings) -> tuple[Any, Any]:
    session = boto3.session.Session(profile_name=settings.profile, region_name=settings.region)
    with _fetched(settings):
        credentials = session.get_credentials()
    try:
        return session.client("s3", endpoint_url=settings.endpoint, config=_CONFIG), credentials
    except exceptions.InvalidRegionError as error:
        raise UserError(
            f"S3 has no such region: {error}",
            expected="one such as us-east-1",
            mend="Set IGPT_S3_REGION, s3.region in igpt.yaml or AWS_DEFAULT_REGION",
        ) from None
    except exceptions.BotoCoreError:
        raise
    except ValueError as error:
        # It repeats the address, with a secret that there may be in it.
        said = str(error)
        raise UserError(
            "the endpoint of S3 is no address" + ("" if "@" in said else f" ({said})"),
            expected="one such as http://127.0.0.1:8333 or https://s3.example.org",
            mend=f"Set {_where_from(settings)} so",
        ) from None


def _where_from(settings: S3Settings) -> str:
    """What the user has written the endpoint in."""
    if settings.endpoint:
        return "IGPT_S3_ENDPOINT, or s3.endpoint in igpt.yaml,"
    given = [name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)]
    return given[0] if given else "endpoint_url in ~/.aws/config"


@contextmanager
def _fetched(settings: S3Settings) -> Iterator[None]:
    """Turns what a program or a file of credentials does wrong into `Unreachable`.

    botocore lets a missing file, text that is no JSON and a role that is refused out as they are.
    """
    try:
        yield
    except exceptions.BotoCoreError:
        forget_client(settings)
        raise
    except (OSError, ValueError, exceptions.ClientError) as error:
        forget_client(settings)
        raise Unreachable(
            f"the credentials for S3 cannot be fetched: {error}",
            mend="Check credential_process, role and token file of the profile, or the AWS_*"
            " variables; or log in again",
        ) from error


def forget_client(settings: S3Settings) -> None:
    """Lets the next request of these settings read the credentials anew."""
    _clients.pop(settings, None)


def forget_clients() -> None:
    """Lets the next request make its client anew, from the environment as it is then."""
    global _lock
    _lock = threading.Lock()  # another thread may have held it at the moment of a fork
    _clients.clear()


os.register_at_fork(after_in_child=forget_clients)


def error_code(error: exceptions.ClientError) -> str:
    """The server's name for what is wrong, or the HTTP status where the answer has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def explained(bucket: str, settings: S3Settings) -> Iterator[None]:
    """Turns what boto3 raises into `Unreachable`: which server, which bucket, what to do."""
    try:
        yield
    except RetriesExceededError as error:
        raise _unreachable(error.last_exception, bucket, settings) from error
    except (exceptions.ClientError, exceptions.BotoCoreError) as error:
        raise _unreachable(error, bucket, settings) from error


def _unreachable(error: Exception, bucket: str, settings: S3Settings) -> Unreachable:
    where = f"the bucket {bucket!r} at {_endpoint(settings)}"
    if isinstance(error, exceptions.ClientError):
        if error_code(error) in _REFUSED_KEYS | _REFUSED_RIGHTS:
            forget_client(settings)
        return _refused(error, where, settings)
    if "Invalid header value" in str(error):  # which it repeats, and that is a secret
        forget_client(settings)
        return Unreachable(
            f"{where} cannot be asked: there is a line break in our credentials", mend=_CREDENTIALS
        )
    if isinstance(error, exceptions.ProfileNotFound):
        return Unreachable(
            f"{where} cannot be reached: {error}",
            mend="Check IGPT_S3_PROFILE and s3.profile in igpt.yaml, or write the profile",
        )
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        forget_client(settings)
        return Unreachable(f"{where} needs credentials and there are none", mend=_CREDENTIALS)
    if isinstance(
        error,
        exceptions.CredentialRetrievalError
        | exceptions.TokenRetrievalError
        | exceptions.SSOError
        | exceptions.LoginError,
    ):
        return Unreachable(
            f"{where} needs credentials and they cannot be fetched: {error}",
            mend="Log in again (aws sso login), or check the profile",
        )
    return Unreachable(
        f"{where} cannot be reached: {error}",
        mend="Check that the server runs, that this machine reaches it, and the endpoint "
        "(IGPT_S3_ENDPOINT, s3.endpoint in igpt.yaml or AWS_ENDPOINT_URL)",
    )


def _refused(error: exceptions.ClientError, where: str, settings: S3Settings) -> Unreachable:
    code = error_code(error)
    message = str(error.response.get("Error", {}).get("Message", "")).rstrip(".")
    answer = f"{code}: {message}" if message else code
    if code == "NoSuchBucket":
        return Unreachable(
            f"{where} does not exist",
            mend="Create the bucket, or check its name and the endpoint",
        )
    if code in _REFUSED_KEYS:
        return Unreachable(f"{where} refuses our credentials ({answer})", mend=_CREDENTIALS)
    if code in _REFUSED_RIGHTS:
        return Unreachable(
            f"{where} refuses our account ({answer})",
            expected="the rights s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject",
            mend="Ask the owner of the bucket for them, or use other credentials",
        )
    if code == "RequestTimeTooSkewed":
        return Unreachable(
            f"{where} refuses the time of our request ({answer})",
            mend="Set the clock of this machine",
        )
    if code in _OTHER_REGION:
        region = settings.region or "the default"
        return Unreachable(
            f"{where} is not served in our region, {region} ({answer})",
            mend="Set IGPT_S3_REGION, or s3.region in igpt.yaml, to the region of the bucket",
        )
    return Unreachable(
        f"{where} answered {answer}", mend="Try again later, or ask whoever runs the server"
    )


def _endpoint(settings: S3Settings) -> str:
    """The server's address, without a secret that AWS_ENDPOINT_URL may hold."""
    found = _clients.get(settings)
    address = found[0].meta.endpoint_url if found else settings.endpoint or "S3"
    parts = urlsplit(address)
    if "@" in parts.netloc:
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return str(address)
