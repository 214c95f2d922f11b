"""How long a store that is away is waited for, by whoever cannot go on without it."""

import errno
import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from igpt.errors import Unreachable

log = logging.getLogger("igpt")

T = TypeVar("T")

#: A store that is away for this long has gone.
PATIENCE_SECONDS = 3600.0

_FULL = (errno.EDQUOT, errno.ENOSPC)


class Patience:
    """The pauses between tries while a store is away, each twice the one before it.

    seconds: how long it may be away. full: whether a full disk is waited for as well, which passes
    only where somebody clears it. first, longest: of the pauses, in seconds. clock: seconds from
    any moment on.
    """

    def __init__(
        self,
        seconds: float = PATIENCE_SECONDS,
        *,
        full: bool = False,
        first: float = 0.5,
        longest: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._full = full
        self._first = first
        self._longest = longest
        self._clock = clock
        self._since: float | None = None  # when the store was found to be away
        self._pause = first

    def pause(self, error: Unreachable) -> float:
        """Seconds until the next try, after one that ended with `error`.

        Raises it where it has lasted too long, and for a disk that is full.
        """
        now = self._clock()
        if self._since is None:
            self._since = now
        if now - self._since >= self._seconds or (is_full(error) and not self._full):
            raise error
        pause, self._pause = self._pause, min(self._longest, 2 * self._pause)
        return pause

    @property
    def waiting(self) -> bool:
        """Whether the store was away at the last try."""
        return self._since is not None

    def reset(self) -> None:
        """The store is there again."""
        self._since = None
        self._pause = self._first


def insist(
    action: Callable[[], T],
    seconds: float = PATIENCE_SECONDS,
    *,
    full: bool = True,
    time_left: Callable[[], float] = lambda: math.inf,
    away: Callable[[Unreachable], None] = lambda error: log.warning("%s", error),
) -> T:
    """What the action returns, as soon as the store is there.

    seconds, full: of the patience. time_left: seconds until nobody can wait any more. away: told of
    each try that found no store. Raises Unreachable where it stays away.
    """
    patience = Patience(seconds, full=full)
    while True:
        try:
            return action()
        except Unreachable as error:
            pause = patience.pause(error)
            if time_left() < pause:
                raise
            away(error)
            time.sleep(pause)


def is_full(error: Unreachable) -> bool:
    """Whether the disk, or the quota, of a directory is used up."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _FULL
