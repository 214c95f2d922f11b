"""What the reports of the client and of all nodes come to. Pure: no file, no clock, no network.

Each check gives one finding where all is well, else one for each thing that is not, with what to
do. A check that could not be made because of something else says so and does not fail.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from igpt.clusters.doctor.finding import EVERYWHERE, Finding, grouped, named
from igpt.clusters.doctor.gathering import Gathered
from igpt.clusters.doctor.meeting import all_reduce, names, ports
from igpt.clusters.doctor.packages import code, packages, python
from igpt.clusters.doctor.report import Report

#: Seconds that clocks may differ: what is heard late looks as much.
_CLOCK = 3.0
#: A run that is silent for 60 s counts as stalled, by the clock of whoever looks.
_CLOCK_FAILS = 30.0
_SLOW = 5.0  # MB a second
#: Bytes that are little, for what each place is for.
_LITTLE = {"TMPDIR": 1e9, "cache": 10e9, "folder": 1e9}
_VARIABLES = {"TMPDIR": "TMPDIR", "cache": "IGPT_CACHE"}


@dataclass(frozen=True)
class Asked:
    """What the cluster file asks for."""

    kind: str
    workers: int  # on each node
    gpus: int | None = None  # on each node; None: the file does not say
    device: str | None = None  # the name in the file


def diagnose(client: Report | None, gathered: Gathered, asked: Asked) -> list[Finding]:
    """All findings, in the order of the table.

    client: the report of the machine that submits; None where it is the node.
    """
    reports = [report for report in gathered.reports if "hello" in report.facts]
    findings = nodes(gathered)
    if not reports:
        return [*findings, *store(client, ()), *disks(client, ())] if client else findings
    findings = [
        *findings,
        *code(reports, gathered.code),
        *python(client, reports),
        *packages(client, reports, gathered.code, asked.kind),
        *store(client, reports),
        *upload(client, reports),
        *disks(client, reports),
        *clock(client, reports),
        *names(reports),
        *ports(reports),
        *accelerators([one for one in reports if one.name not in gathered.idle] or reports, asked),
        *all_reduce(reports),
    ]
    if len(reports) > 1 or client is not None:
        return findings
    return [replace(one, where=one.where.replace(EVERYWHERE, reports[0].name)) for one in findings]


def nodes(gathered: Gathered) -> list[Finding]:
    """Whether every node has said all it was asked."""
    reports = gathered.reports
    if not reports:
        said = gathered.trouble or "no node has said anything"
        mend = gathered.mend or "Look whether a job of this cluster file starts at all"
        return [Finding("nodes", "fail", EVERYWHERE, said, mend)]
    findings = []
    silent = gathered.nodes - len(reports)
    if silent > 0:
        found = f"{silent} of {gathered.nodes} said nothing"
        if gathered.trouble:
            found += f"; heard last: {gathered.trouble}"
        mend = gathered.mend or (
            "See whether `setup` and `python` of the cluster file work there, by hand"
        )
        who = f"not {named([report.name for report in reports])}"
        findings.append(Finding("nodes", "fail", who, found, mend))
    broken = {
        report.name: str(report.facts.get("error", "stopped in the middle of the examination"))
        for report in reports
        if "error" in report.facts or "end" not in report.facts
    }
    findings += grouped("nodes", "fail", broken, "Run it again; look at the node's own log")
    if not findings:
        found = f"{len(reports)} answered: {named([report.name for report in reports])}"
        findings.append(Finding("nodes", "ok", EVERYWHERE, found))
    return findings


def store(client: Report | None, reports: Sequence[Report]) -> list[Finding]:
    """Whether it can be written from everywhere, is the same everywhere, and creates only once."""
    said = {report.name: report.fact("store") for report in _all(client, reports)}
    findings = _not_tried("store", said)
    for name, one in said.items():
        if "error" in one:
            found = "; expected: ".join(filter(None, (one["error"], one.get("expected"))))
            mend = one.get("mend") or "Run `igpt-jobs list` there: it says the same, or more"
            findings.append(Finding("store", "fail", name, found, mend))
    findings = _merged(findings)
    if client is not None and "rate" in said[client.name]:
        blind = [report.name for report in reports if said[report.name].get("seen") is False]
        if blind:
            found = "what the client has written is not there: it is another store"
            mend = "Give --store a folder that all nodes share under the same path, or s3://"
            findings.append(Finding("store", "fail", named(blind), found, mend))
    claims = [report.name for report in reports if said[report.name].get("claimed")]
    if len(claims) > 1 and not findings:
        found = f"{named(claims)} could each create the same object"
        mend = "Two attempts could both own a run: use a store that all see, and S3's If-None-Match"
        findings.append(Finding("store", "fail", named(claims), found, mend))
    return findings or [
        Finding("store", "ok", _everywhere(client), "reached, written, creates an object only once")
    ]


def upload(client: Report | None, reports: Sequence[Report]) -> list[Finding]:
    """How fast a few MB go into the store."""
    rates = {
        report.name: float(report.fact("store")["rate"])
        for report in _all(client, reports)
        if "rate" in report.fact("store")
    }
    slow = {name: f"{rate:.1f} MB/s" for name, rate in rates.items() if rate < _SLOW}
    mend = "A checkpoint takes long: `igpt-jobs plan` reckons with --upload, set grace_seconds so"
    if slow or not rates:
        return grouped("upload", "warn", slow, mend)
    low, high = min(rates.values()), max(rates.values())
    found = f"{low:.0f} MB/s" if high < 1.2 * low else f"{low:.0f} to {high:.0f} MB/s"
    return [Finding("upload", "ok", _everywhere(client), found)]


def disks(client: Report | None, reports: Sequence[Report]) -> list[Finding]:
    """Whether runs can write where they write on each node."""
    findings = []
    free: dict[str, list[float]] = {}
    for report in _all(client, reports):
        disks = report.fact("disks")
        if "error" in disks:
            disks = {"TMPDIR": {"path": "every disk", **disks}}
        for what, disk in disks.items():
            if report is client and what == "TMPDIR":
                continue
            path = f"{what} ({disk['path']})"
            if "error" in disk:
                found = f"{path} cannot be written: {disk['error']}"
                findings.append(Finding("disk", "fail", report.name, found, _make_room(what)))
            elif disk["free"] < _LITTLE[what]:
                found = f"{path} has {disk['free'] / 1e9:.1f} GB left"
                findings.append(Finding("disk", "warn", report.name, found, _make_room(what)))
            elif what == "folder" and not disk["exists"] and report is not client:
                found = f"{path} is not there"
                mend = "Set `folder` to one that the login node and all nodes share"
                findings.append(Finding("disk", "fail", report.name, found, mend))
            else:
                free.setdefault(what, []).append(disk["free"])
    if findings:
        return _merged(findings)
    least = ", ".join(f"{what} {min(left) / 1e9:.0f} GB" for what, left in free.items())
    return [Finding("disk", "ok", _everywhere(client), f"at least free: {least}")]


def _make_room(what: str) -> str:
    if what == "folder":
        return "Make room there, or set `folder` in the cluster file to another shared folder"
    variable = _VARIABLES[what]
    return f"Make room there, or export {variable}=... in `setup` of the cluster file"


def clock(client: Report | None, reports: Sequence[Report]) -> list[Finding]:
    """Whether the nodes' clocks agree with the client's, and so with each other."""
    ahead = {report.name: report.ahead for report in reports if report.ahead is not None}
    if not ahead or client is None:
        return []
    middle = sorted(ahead.values())[(len(ahead) - 1) // 2]
    together = max(ahead.values()) - min(ahead.values()) <= _CLOCK
    mend = "Have its time set from the network (chrony, ntpd): `timedatectl` shows whether it is"
    if together and len(ahead) > 1 and abs(middle) > _CLOCK:
        found = f"{_off(-middle)}, by the clocks of all nodes"
        return [Finding("clock", _how_bad(middle), client.name, found, mend)]
    findings = [
        Finding("clock", _how_bad(seconds), name, f"{_off(seconds)}, by the client's clock", mend)
        for name, seconds in ahead.items()
        if abs(seconds) > _CLOCK
    ]
    most = max(map(abs, ahead.values()))
    return findings or [
        Finding("clock", "ok", EVERYWHERE, f"within {max(1.0, most):.0f} s of the client's")
    ]


def _how_bad(seconds: float) -> Any:
    return "fail" if abs(seconds) > _CLOCK_FAILS else "warn"


def _off(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}"


def accelerators(reports: Sequence[Report], asked: Asked) -> list[Finding]:
    """Whether torch sees what the cluster file asks for, on every node the same."""
    said = {report.name: report.fact("devices") for report in reports}
    seen = {name: one["names"] for name, one in said.items() if "names" in one}
    findings: list[Finding] = []
    for report in reports:
        if report.name not in seen:
            continue
        count, cards = len(seen[report.name]), int(report.fact("hello").get("cards", 0))
        if cards and not count:
            built = said[report.name].get("cuda")
            why = f"built for CUDA {built}" if built else "built without CUDA"
            found = f"{cards} GPUs are there, and torch, {why}, sees none"
            mend = "Install the torch for the driver that `nvidia-smi` shows, or set `setup`"
            findings.append(Finding("accelerators", "fail", report.name, found, mend))
        elif asked.gpus is not None and count != asked.gpus:
            found = f"torch sees {count} GPUs, the cluster file asks for {asked.gpus} a node"
            mend = "`nvidia-smi` there shows what is; check gpus_per_node and CUDA_VISIBLE_DEVICES"
            findings.append(Finding("accelerators", "fail", report.name, found, mend))
        elif 0 < count < asked.workers:
            found = f"{count} GPUs for {asked.workers} workers"
            mend = "Have one worker a GPU: set `workers`"
            findings.append(Finding("accelerators", "warn", report.name, found, mend))
    kinds = {name: ", ".join(sorted(set(one))) for name, one in seen.items()}
    if len(set(kinds.values())) > 1 and not findings:
        by = "`accelerator_type`" if asked.kind == "ray" else "`constraint` or `partition`"
        mend = f"The slowest sets the pace: choose one kind by {by}"
        texts = {name: kind or "no GPU" for name, kind in kinds.items()}
        findings += grouped("accelerators", "warn", texts, mend)
    if asked.device and not findings:
        other = {k: v for k, v in kinds.items() if v and asked.device.lower() not in v.lower()}
        mend = f"`device` of the cluster file says {asked.device}: `plan` reckons with that"
        findings += grouped("accelerators", "warn", other, mend)
    findings += [
        Finding("accelerators", "warn", name, f"not known: {one['error']}")
        for name, one in said.items()
        if name not in seen
    ]
    if findings:
        return _merged(findings)
    counts = {len(one) for one in seen.values()}
    kind = next(iter(kinds.values()))
    found = f"{min(counts)} x {kind} a node" if kind else "none: runs compute on the CPU"
    return [Finding("accelerators", "ok", EVERYWHERE, found)]


def _not_tried(check: str, said: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    missing = {
        name: f"not tried: there is no {one['missing']}"
        for name, one in said.items()
        if "missing" in one
    }
    return grouped(check, "warn", missing)


def _all(client: Report | None, reports: Sequence[Report]) -> list[Report]:
    return [*([client] if client is not None else []), *reports]


def _everywhere(client: Report | None) -> str:
    return EVERYWHERE if client is None else f"client, {EVERYWHERE}"


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for the same thing at several places."""
    places: dict[tuple[str, Any, str, str], list[str]] = {}
    for one in findings:
        places.setdefault((one.check, one.level, one.found, one.mend), []).append(one.where)
    return [
        Finding(check, level, named(where), found, mend)
        for (check, level, found, mend), where in places.items()
    ]
