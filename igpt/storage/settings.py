"""Which store is meant and how to reach it: options, environment and igpt.yaml.

Credentials are in none of them. They come from boto3's own chain, on the machine that needs them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from igpt.config import Strict, parse, read_yaml_file
from igpt.errors import UserError
from igpt.storage.files import explained

FORMS = "a path, file:///path or s3://bucket/prefix"

_Text = Annotated[str, Field(min_length=1)]


def _check_endpoint(endpoint: str) -> str:
    if "@" in endpoint:
        # The endpoint is shown and recorded, so it must hold no secret.
        raise ValueError("an endpoint takes no user name or password")
    parts = urlsplit(endpoint)
    try:
        port = parts.port
    except ValueError:  # no number, or too large a one
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{endpoint!r} is not an address such as https://s3.example.org:9000")
    return endpoint


class S3Settings(Strict):
    """How to reach S3. What is None is left to boto3 (AWS_ENDPOINT_URL, ~/.aws/config, ...)."""

    endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    region: _Text | None = None
    profile: _Text | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "S3Settings":
        """From IGPT_S3_ENDPOINT, IGPT_S3_REGION, IGPT_S3_PROFILE; an empty one counts as unset."""
        found = {name: environment.get(_variable(name)) or None for name in cls.model_fields}
        if found["endpoint"]:
            try:
                _check_endpoint(found["endpoint"])
            except ValueError as error:
                raise UserError(f"IGPT_S3_ENDPOINT: {error}") from None
        return cls(**found)

    def to_environment(self) -> dict[str, str]:
        """The variables from which another process reads the same settings."""
        return {_variable(name): value for name, value in self if value is not None}


class _File(Strict):
    """What igpt.yaml may hold."""

    store: _Text | None = None
    s3: S3Settings = S3Settings()


def resolve_store(
    option: str | None, environment: Mapping[str, str], directory: Path
) -> tuple[str, S3Settings, str]:
    """The store's URI, the settings for S3, and where the URI was written, for messages.

    `option` (--store) goes before IGPT_STORE, this before igpt.yaml in `directory`, this before
    ./igpt-store. Relative paths count from `directory`, wherever they were written. Each S3 setting
    comes from its variable, else from igpt.yaml.
    """
    path = directory / "igpt.yaml"
    with explained("read", path):
        is_there = path.exists()
    file = _read(path) if is_there else _File()
    given = S3Settings.from_environment(environment).model_dump(exclude_none=True)
    settings = file.s3.model_copy(update=given)
    for uri, origin in (
        (option, "--store"),
        (environment.get("IGPT_STORE"), "IGPT_STORE"),
        (file.store, str(path)),
    ):
        if uri:
            absolute = uri if "://" in uri else str(absolute_path(uri, directory))
            return absolute, settings, origin
    return str(absolute_path("igpt-store", directory)), settings, "the default"


def _read(path: Path) -> _File:
    document = read_yaml_file(path)
    s3 = document.data.get("s3")
    endpoint = s3.get("endpoint") if isinstance(s3, dict) else None
    if isinstance(endpoint, str) and "@" in endpoint:  # `parse` would repeat the secret
        where = document.where(("s3", "endpoint"))
        raise UserError(f"{where}: an endpoint takes no user name or password")
    return parse(_File, document)


def absolute_path(path: str, directory: Path, what: str = "store") -> Path:
    """The path with `~` expanded, counted from `directory`. Raises UserError for a `~nobody`.

    what: what the path is of, for the message.
    """
    try:
        return directory.absolute() / Path(path).expanduser()
    except RuntimeError:
        expected = FORMS if what == "store" else "a path, ~/path or ~user/path"
        message = f"{what} {path!r}: there is no such home directory"
        raise UserError(message, expected=expected) from None


def _variable(name: str) -> str:
    return f"IGPT_S3_{name.upper()}"
