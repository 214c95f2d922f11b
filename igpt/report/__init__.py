"""The report: plain data in, one self-contained HTML page and the same tables for a terminal out.

    page = render(Report(title="...", made=now, probes=ProbeTable(rows, selections)))

The room reads no store and knows no run: whoever calls it fills `igpt.report.content`. A part that
is not given is left out, with its heading.
"""

from igpt.report.content import (
    Attempt,
    Completion,
    Headline,
    ImageGrid,
    ProbeRow,
    ProbeSelection,
    ProbeTable,
    Protocol,
    PublishedRow,
    Report,
    TrainingCurve,
)
from igpt.report.page import render
from igpt.report.tables import probe_csv, tables, training_csv

__all__ = [
    "Attempt",
    "Completion",
    "Headline",
    "ImageGrid",
    "ProbeRow",
    "ProbeSelection",
    "ProbeTable",
    "Protocol",
    "PublishedRow",
    "Report",
    "TrainingCurve",
    "probe_csv",
    "render",
    "tables",
    "training_csv",
]
