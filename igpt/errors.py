"""What can go wrong for a user, as exceptions with three parts and an exit code.

Each error says what is wrong and where, what was expected, and what to do. The command line turns
it into one paragraph and the exit code of its class; a notebook sees the same text.
"""


class IgptError(Exception):
    """The run failed, or something did that is nobody's input. Exit code 1."""

    exit_code = 1

    def __init__(self, what: str, *, expected: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.mend = mend

    def __str__(self) -> str:
        parts = [self.what, self.expected and f"Expected: {self.expected}", self.mend]
        return " ".join(part if part[-1] in ".?!" else f"{part}." for part in parts if part)


class UserError(IgptError, ValueError):
    """The input is wrong and nothing was started. Exit code 2. Never retried."""

    exit_code = 2


class Unreachable(IgptError, ConnectionError):
    """A store or a cluster cannot be reached, or refuses us. Exit code 3."""

    exit_code = 3


class NotFound(IgptError, LookupError):
    """A run, an object or a data set that does not exist. Exit code 4."""

    exit_code = 4


class Cancelled(IgptError):
    """The run was cancelled. Exit code 5."""

    exit_code = 5


class Superseded(IgptError):
    """A newer attempt owns the run; this one must commit nothing more. Exit code 6."""

    exit_code = 6


class PeerFailed(IgptError):
    """Another rank has failed, and this one cannot go on alone; the cause is that one's to tell."""


class DataCorrupt(IgptError):
    """Stored bytes are not the bytes that were written (class `corrupt`). Exit code 1."""
