"""What looks like a secret: blanked in what is recorded as it is found, refused in what is written.

A run's record is readable by all who reach the bucket. Both are guesses, by names and by the known
forms of keys. What is read from elsewhere when a line is carried out is no secret.
"""

import re
from typing import Annotated

from pydantic import AfterValidator

from igpt.config import WithheldValue

_NAME = r"[\w-]*(?:secret|token|passw|credential|api[_-]?key|access[_-]?key)[\w-]*"
_NAMED = re.compile(
    rf"""(?ix) ( {_NAME} ["']? \s* [:=] \s* ) ( "[^"\n]*" | '[^'\n]*' | [^\s"',]+ )"""
)
_KNOWN = re.compile(
    r"(?s)(?:AKIA|ASIA)[A-Z0-9]{16}|(?i:bearer\s+|authorization:\s*\w+\s+)[\w.~+/=-]{8,}"
    r"|\b(?:hf_|gh[a-z]_|github_pat_|xox[a-z]-|sk-)[\w-]{16,}|(?i:wandb\s+login\s+)[0-9a-f]{40}"
    r"|(?<=//hooks\.slack\.com/)[\w/-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
_USERINFO = re.compile(r"(://)[^/@\s]+@")

#: What a shell fills in: `$(cat FILE)`, `${NAME:-...}`, `$NAME`.
_EXPANSION = re.compile(r"\$\([^()]*\)|\$\{[^{}]*\}|\$\w+|`[^`]*`")
_ASSIGNED = re.compile(
    rf"""(?ix) ({_NAME}) ["']? (?: = | \s+=\s+ | :\s* ) ( "[^"\n]*" | '[^'\n]*' | [^\s"',;]+ )"""
)
_FLAG = re.compile(r"(?i)--([\w-]*(?:token|password|api-key|secret-key|access-key))\s+([^\s-]\S*)")
_LOGIN = re.compile(r"://(?:[^/@\s:]*:[^/@\s$]+|[^/@\s:$]{20,})@")
#: The names of numbers, settings and places,
_HARMLESS_NAME = re.compile(r"(?i)tokens|tokeniz|(?:file|path|dir)$")
#: and values that are filled in, places, switches or nothing.
_HARMLESS = re.compile(
    r"""["']?(?:\$|~|\.{1,2}/|/[A-Z]?[a-z0-9_.-]*(?:[/:]|["']?$)"""
    r"""|(?i:\d|true|false|yes|no|on|off|none|null)?["']?$)"""
)


def redact(text: str) -> str:
    """The text without the values of what is named or looks like a secret, or user:password@."""
    return _USERINFO.sub(r"\1***@", _KNOWN.sub("***", _NAMED.sub(r"\1***", text)))


def written_secret(text: str) -> str | None:
    """What secret is written out in a text, such as a shell line, in words that do not hold it."""
    filled = _EXPANSION.sub("$", text)
    for name, value in (*_ASSIGNED.findall(filled), *_FLAG.findall(filled)):
        if not _HARMLESS_NAME.search(name) and not _HARMLESS.match(value):
            return str(name)
    if _LOGIN.search(filled):
        return "the user and password of an address"
    return "a key" if _KNOWN.search(filled) else None


def without_secret(text: str) -> str:
    """The text, for a field that is recorded. Raises WithheldValue where it holds a secret."""
    if found := written_secret(text):
        raise WithheldValue(
            f"a secret ({found}) is written out, in a file that is recorded with the run for all "
            "who reach the store; have it read from a file or the environment where it is used, "
            "as by the shell line `export NAME=$(cat ~/.name)` or `source FILE`, and call it $NAME"
        )
    return text


#: Text of a configuration that is recorded and shown.
Recorded = Annotated[str, AfterValidator(without_secret)]
