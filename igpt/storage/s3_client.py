"""The connection to an S3 server, and what its errors mean for the user.

There is one client per process and settings, made at first use. A client is shared by threads, and
made anew after a fork. Requests are tried four times with growing pauses: a server that refuses
connections, or that no packet reaches, is given up after 15 seconds; one that accepts a request
and never answers, after 45.
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

from igpt.errors import Unreachable
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
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_REFUSED_RIGHTS = {"403", "AccessDenied", "AccountProblem", "AllAccessDisabled", "Forbidden"}
_OTHER_REGION = {
    "301",
    "400",  # all that a HEAD request tells of a wrong region
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

_clients: dict[S3Settings, Any] = {}
_lock = threading.Lock()


def s3_client(settings: S3Settings) -> Any:
    """The process's boto3 client for these settings."""
    if settings not in _clients:
        with _lock:
            if settings not in _clients:
                session = boto3.session.Session(
                    profile_name=settings.profile, region_name=settings.region
                )
                _clients[settings] = session.client(
                    "s3", endpoint_url=settings.endpoint, config=_CONFIG
                )
    return _clients[settings]


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
        return _refused(error, where, settings)
    if isinstance(error, exceptions.ProfileNotFound):
        return Unreachable(
            f"{where} cannot be reached: {error}",
            mend="Check IGPT_S3_PROFILE and s3.profile in igpt.yaml, or write the profile",
        )
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
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
    client = _clients.get(settings)
    address = client.meta.endpoint_url if client else settings.endpoint or "S3"
    parts = urlsplit(address)
    if "@" in parts.netloc:
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return str(address)
