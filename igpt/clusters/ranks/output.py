"""One rank's output on its way into the run's record, in numbered parts."""

import os
import threading
from typing import IO

from igpt.runs import Run
from igpt.runs.logs import log_key

_KEEP_BYTES = 8 * 2**20  # output kept for a store that is away
_TAIL_BYTES = 64 * 2**10  # of the latest output, for whoever asks


class RankOutput:
    """Reads a rank's output as it comes and keeps it until it is shipped."""

    def __init__(self, run: Run, attempt: int, rank: int, stream: IO[bytes]) -> None:
        self._run, self._attempt, self._rank = run, attempt, rank
        self._pending = bytearray()
        self._tail = bytearray()
        self._dropped = 0
        self._part = 0
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def ship(self, *, all_of_it: bool = False) -> None:
        """Writes the whole lines that have come since the last shipment, or all that has."""
        with self._lock:
            text, dropped = bytes(self._pending), self._dropped
        if not all_of_it and len(text) < _KEEP_BYTES // 2:
            text = text[: text.rfind(b"\n") + 1]
        if not text:
            return
        note = f"[{dropped} bytes of output were lost while the store was away]\n".encode()
        key = log_key(self._attempt, self._rank, self._part)
        self._run.record.put(key, (note if dropped else b"") + text)
        self._part += 1
        with self._lock:
            # What was dropped from the front while we wrote had been written by us.
            del self._pending[: max(0, len(text) - (self._dropped - dropped))]
            self._dropped = 0

    def tail(self) -> str:
        """The latest output."""
        with self._lock:
            return self._tail.decode(errors="replace")

    def finish(self) -> None:
        """Waits for the end of the output."""
        self._reader.join(timeout=5)

    def _read(self, stream: IO[bytes]) -> None:
        while chunk := os.read(stream.fileno(), 65536):
            with self._lock:
                self._pending += chunk
                self._tail += chunk
                del self._tail[:-_TAIL_BYTES]
                excess = len(self._pending) - _KEEP_BYTES
                if excess > 0:
                    del self._pending[:excess]
                    self._dropped += excess
