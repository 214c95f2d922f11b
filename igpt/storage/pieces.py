"""Work in pieces that several workers share: whoever puts them together waits for the others."""

import time
from collections.abc import Callable, Collection, Sequence

from igpt.errors import IgptError

#: Without a new piece for so long, whoever was to make the others is not at work.
PIECES_SECONDS = 3600.0

_POLL = 2.0  # seconds between two looks at the store


def await_pieces(
    wanted: Sequence[str],
    there: Callable[[], Collection[str]],
    *,
    what: str,
    tick: Callable[[], None] = lambda: None,
    timeout: float = PIECES_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns once all pieces that are `wanted` are `there`.

    there: looks what has come. what: the pieces, for the message, such as "s3://bucket/a: shards".
    tick: called between two looks; what it raises ends the wait. timeout: seconds, which begin anew
    with each piece that comes. clock, sleep: seconds from any moment on, and how they pass.

    Raises IgptError where none has come for so long.
    """
    missing, since = len(wanted) + 1, clock()
    while True:
        come = set(there())
        left = [piece for piece in wanted if piece not in come]
        if not left:
            return
        if len(left) < missing:
            missing, since = len(left), clock()
        elif clock() - since > timeout:
            raise IgptError(
                f"{what} of other workers have not come for {timeout:.0f} seconds: "
                f"{len(left)} are missing, the first is {left[0]}",
                mend="Start the same job again: what is finished is kept",
            )
        tick()
        sleep(_POLL)
