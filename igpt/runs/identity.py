"""What makes two submissions the same work, and what a run is called.

The digest of a spec covers the job, its whole configuration and the digests of its inputs. The
eight characters of a run's name come from it and an ordinal, so that submitting the same work
twice collides on one name, which an exclusive create then settles.
"""

import hashlib
import json
import re
from typing import Any

from igpt.errors import UserError

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def canonical_json(value: Any) -> bytes:
    """One spelling for equal values: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def work_digest(job: str, config: dict[str, Any], inputs: dict[str, Any]) -> str:
    """sha256, in hex, of what is to be done and to what."""
    return hashlib.sha256(
        canonical_json({"job": job, "config": config, "inputs": inputs})
    ).hexdigest()


def run_id(name: str, digest: str, ordinal: int) -> str:
    """`<name>-<8 characters>`; ordinal 0 is the first run of this work, 1 the next."""
    suffix = hashlib.sha256(f"{digest}:{ordinal}".encode()).hexdigest()[:8]
    return f"{check_name(name)}-{suffix}"


def slug(text: str) -> str:
    """The closest name to a text: lower case, dashes for what a name cannot hold."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")


def check_name(name: str) -> str:
    """The name, if it can be part of a key, a file name and a job's name. Raises UserError."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a run",
            expected="at most 40 lower-case letters, digits and dashes, not a dash at either end",
            mend="Choose another with --name",
        )
    return name
