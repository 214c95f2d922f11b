"""Part of the diagnosis: whether nodes and client run the same software."""

from collections.abc import Sequence
from pathlib import Path

from igpt.clusters.doctor.finding import EVERYWHERE, Finding, Level, grouped, named
from igpt.clusters.doctor.report import Report

_OLDEST = (3, 11)
#: Of these, nodes of other versions train together only by luck.
_SAME = frozenset(("igpt-jobs", "numpy", "ray", "torch"))

_SLOW = (
    "The node is busy, or its file system slow: run it again. Where it stays so, install the"
    " environment on a disk of the node: each rank waits as long before its first step"
)


def code(reports: Sequence[Report], folder: Path | None) -> list[Finding]:
    """Whether every node has this package from where runs have it.

    folder: the unpacked snapshot; None where nodes have to have it installed.
    """
    findings = []
    for report in reports:
        if "error" in report.fact("code"):
            continue  # `packages` says so
        if report.fact("packages").get("igpt-jobs") == "?":
            found = "igpt-jobs is there and not installed, so that its jobs are not found by name"
            mend = "pip install it there, or let all nodes see the environment of the login node"
            findings.append(Finding("code", "fail", report.name, found, mend))
        origin = report.fact("code").get("origin")
        if origin is None:
            mend = "Install it there, or let all nodes see the environment of the login node"
            if folder is not None:
                mend = f"All nodes have to see {folder}: set `folder` to one that they share"
            findings.append(Finding("code", "fail", report.name, "there is no igpt-jobs", mend))
        elif folder is not None and not Path(origin).is_relative_to(folder):
            found = f"igpt-jobs comes from {Path(origin).parent} and not from {folder}"
            mend = (
                "All nodes have to see that folder: set `folder` to one that they share; or see"
                " what `setup` and `python` of the cluster file do to PYTHONPATH"
            )
            findings.append(Finding("code", "fail", report.name, found, mend))
    where = "as it is here" if folder is not None else "as installed"
    return findings or [Finding("code", "ok", EVERYWHERE, f"igpt-jobs {where}")]


def python(client: Report | None, reports: Sequence[Report]) -> list[Finding]:
    """Whether it is new enough and the same."""
    versions = {report.name: tuple(report.fact("hello")["python"]) for report in reports}
    old = {name: _dotted(one) for name, one in versions.items() if one < _OLDEST}
    mend = "Set `python` in the cluster file to Python 3.11 or newer"
    findings = grouped("python", "fail", old, mend)
    minors = {name: one[:2] for name, one in versions.items()}
    if len(set(minors.values())) > 1 and not findings:
        texts = {name: _dotted(one) for name, one in versions.items()}
        findings = grouped("python", "fail", texts, "Let all nodes use the same environment")
    if client is not None and not findings:
        ours = tuple(client.fact("hello")["python"])
        other = {name: _dotted(versions[name]) for name in minors if minors[name] != ours[:2]}
        findings = grouped("python", "warn", other, f"The client has {_dotted(ours)}")
    return findings or [Finding("python", "ok", EVERYWHERE, _dotted(next(iter(versions.values()))))]


def packages(
    client: Report | None, reports: Sequence[Report], folder: Path | None, kind: str
) -> list[Finding]:
    """Whether each can be imported on each node, in the same version.

    folder: as of `code`; what comes from there is the same whatever is installed.
    """
    said = {report.name: report.fact("packages") for report in reports}
    known = {name: one for name, one in said.items() if "error" not in one}
    findings = grouped(
        *("packages", "warn"),
        {name: f"not known: {one['error']}" for name, one in said.items() if name not in known},
        "Run it again: the node may have been busy",
    )
    own = set() if folder is None else {"igpt-jobs"}
    for package in sorted({name for one in known.values() for name in one} - own):
        versions = {name: one.get(package) for name, one in known.items()}
        missing = [name for name, version in versions.items() if version is None]
        if missing:
            if package != "igpt-jobs":  # which `code` names
                lacking = next(report for report in reports if report.name == missing[0])
                executable = lacking.fact("hello").get("executable", "python")
                findings.append(
                    Finding(
                        *("packages", "fail", named(missing), f"there is no {package}"),
                        f"{executable} -m pip install {package}, there",
                    )
                )
            continue
        level: Level = "fail" if package in _SAME else "warn"
        texts = {name: f"{package} {version}" for name, version in versions.items()}
        if len(set(texts.values())) > 1:
            mend = "Let all nodes use the same environment, or install the same version"
            findings += grouped("packages", level, texts, mend)
            continue
        ours = client.fact("packages").get(package) if client is not None else None
        theirs = next(iter(versions.values()))
        if ours is not None and client is not None and ours != theirs:
            found = f"{package} {theirs} on all nodes, {ours} on the client"
            mend = "Install the same version on both"
            bad: Level = "fail" if package == "ray" and kind == "ray" else "warn"
            findings.append(Finding("packages", bad, client.name, found, mend))
    findings += _broken(reports)
    if findings:
        return findings
    shown = ", ".join(f"{name} {said[reports[0].name][name]}" for name in ("torch", "ray"))
    return [Finding("packages", "ok", EVERYWHERE, f"all there and the same: {shown}")]


def _broken(reports: Sequence[Report]) -> list[Finding]:
    """Packages that are there and cannot be imported."""
    findings = []
    for report in reports:
        if any(version is None for version in report.fact("packages").values()):
            continue  # that is said already, and may well be why
        said, devices = report.fact("imports"), report.fact("devices")
        broken = dict(said.get("broken", {}))
        if "error" in said and "end" in report.facts and "late" not in said:
            broken["everything"] = said["error"]
        if "error" in devices and "late" not in devices:
            broken["torch"] = devices["error"]
        for module, error in broken.items():
            found = f"import {module}: {error}"
            mend = "Install it again there, for this system; or see what `setup` has to load"
            findings.append(Finding("packages", "fail", report.name, found, mend))
        # Without torch nothing else is known; the rest is only slow to start.
        if "late" in devices:
            findings.append(Finding("packages", "fail", report.name, devices["error"], _SLOW))
        if "late" in said and "end" in report.facts:
            findings.append(Finding("packages", "warn", report.name, said["error"], _SLOW))
    return findings


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(part) for part in version)
