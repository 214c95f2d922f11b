"""A store that counts what it is asked."""

from collections import Counter
from typing import Any

from igpt.storage import Store


class CountingStore:
    """Passes everything on to a store; `asked` counts the calls by method."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        if not callable(found) or name in ("sub", "local_path"):  # which ask nobody
            return found

        def counted(*arguments: Any, **named: Any) -> Any:
            self.asked[name] += 1
            return found(*arguments, **named)

        return counted
