"""A run: its identity, record, events, attempts and state. All of it lives in the store.

Everything that shows a run (status, logs, report) is a view of this record, so any machine that
reaches the store can show it and no server is needed. `Run` opens and creates records; the other
modules are pure functions over what it reads.
"""

from igpt.runs.record import Run, Spec, create_run, find_run

__all__ = ["Run", "Spec", "create_run", "find_run"]
