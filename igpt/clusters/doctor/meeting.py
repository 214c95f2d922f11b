"""Part of the diagnosis: whether the nodes find and reach each other, and compute together."""

from collections.abc import Sequence
from typing import Any

from igpt.clusters.doctor.finding import EVERYWHERE, Finding, Level, grouped, named
from igpt.clusters.doctor.report import Report

_MOST_PAIRS = 8  # that are named


def names(reports: Sequence[Report]) -> list[Finding]:
    """Whether every node's name leads to its address on every other node, and back."""
    if len(reports) < 2:
        return []
    addresses = {report.name: report.fact("hello").get("address") for report in reports}
    unknown: dict[str, list[str]] = {}
    astray: dict[tuple[str, str], list[str]] = {}
    back: dict[str, list[str]] = {}
    silent: dict[str, str] = {}
    for report in reports:
        said = report.fact("names")
        if "error" in said:
            silent[report.name] = f"not tried: {said['error']}"
            continue
        for name, answer in said["forward"].items():
            if "error" in answer:
                unknown.setdefault(f"{name} does not resolve: {answer['error']}", []).append(
                    report.name
                )
            elif (
                name != report.name  # by which it may well know itself as a loopback
                and (known := addresses.get(name)) is not None
                and known not in answer["found"]
            ):
                key = (name, ", ".join(answer["found"]))
                astray.setdefault(key, []).append(report.name)
        for address, answer in said["reverse"].items():
            if "error" in answer:
                back.setdefault(address, []).append(report.name)
    hosts = "Have it in DNS, or in /etc/hosts of every node; what meets by name hangs for ever"
    findings = [
        Finding("names", "fail", named(where), found, hosts) for found, where in unknown.items()
    ]
    for (name, found), where in astray.items():
        text = f"{name} leads to {found}, and is reached at {addresses.get(name)}"
        bad: Level = "fail" if found.startswith("127.") else "warn"
        mend = "Mend DNS or /etc/hosts there, or set network_interface to the network that is meant"
        findings.append(Finding("names", bad, named(where), text, mend))
    own = {address: name for name, address in addresses.items() if address}
    if back and not unknown:
        texts = {
            f"{address} ({own.get(address, '?')}) has no name": named(where)
            for address, where in back.items()
        }
        mend = "Runs do not need it; some tools do: have the addresses in reverse DNS"
        findings += [Finding("names", "warn", where, text, mend) for text, where in texts.items()]
    findings += grouped("names", "warn", silent, "Mend what else failed, and run it again")
    return findings or [Finding("names", "ok", EVERYWHERE, "all resolve, both ways")]


def ports(reports: Sequence[Report]) -> list[Finding]:
    """Whether the nodes reach each other's ports, all over the range that systems choose from."""
    if len(reports) < 2:
        return []
    by_rank = {report.rank: report for report in reports}
    tried: list[int] = sorted(
        {port for report in reports for port in report.fact("ports").get("tried", [])}
    )
    findings: list[Finding] = []
    mend = (
        "Open the TCP ports of net.ipv4.ip_local_port_range between the nodes (PyTorch, gloo, NCCL"
        " and Ray take any of them), or set network_interface to a network without a firewall"
    )
    silent = {
        report.name: f"not tried: {report.fact('ports')['error']}"
        for report in reports
        if "error" in report.fact("ports")
    }
    closed: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        for peer, errors in report.fact("ports").get("closed", {}).items():
            other = by_rank.get(int(peer))
            busy = other.fact("ports").get("busy", []) if other else []
            shut = {int(port): why for port, why in errors.items() if int(port) not in busy}
            name = other.name if other else f"node {peer}"
            if shut:
                key = (_which(sorted(shut), tried, busy), "; ".join(sorted(set(shut.values()))))
                closed.setdefault(key, []).append(f"{report.name} -> {name}")
    for (which, why), pairs in closed.items():
        shown = ", ".join(pairs[:_MOST_PAIRS])
        more = f" and {len(pairs) - _MOST_PAIRS} more" if len(pairs) > _MOST_PAIRS else ""
        findings.append(Finding("ports", "fail", shown + more, f"{which}: {why}", mend))
    full = [
        report.name
        for report in reports
        if tried and len(report.fact("ports").get("busy", [])) == len(tried)
    ]
    if full:
        found = f"none of {_listed(tried)} is free"
        findings.append(Finding("ports", "fail", named(full), found, "See who listens: `ss -ltnp`"))
    findings += grouped("ports", "warn", silent, "Mend what else failed, and run it again")
    return findings or [
        Finding("ports", "ok", EVERYWHERE, f"reach each other; tried {_listed(tried)}")
    ]


def _which(shut: Sequence[int], tried: Sequence[int], busy: Sequence[int]) -> str:
    """The closed ports, and whether others are open."""
    open_ones = [port for port in tried if port not in shut and port not in busy]
    if not open_ones:
        return "no port can be reached"
    return f"ports {_listed(shut)} are closed, {_listed(open_ones)} are open"


def _listed(ports: Sequence[int]) -> str:
    return ", ".join(str(port) for port in ports)


def all_reduce(reports: Sequence[Report]) -> list[Finding]:
    """Whether a sum over all nodes comes out."""
    said = {report.name: report.fact("reduce") for report in reports}
    findings: list[Finding] = []
    skipped: list[dict[str, Any]] = [one["skipped"] for one in said.values() if "skipped" in one]
    if skipped:
        unready = sorted({name for one in skipped for name in one["unready"]})
        why = f"torch does not work on {named(unready)}" if unready else "the nodes did not meet"
        return [Finding("all-reduce", "fail", EVERYWHERE, f"not tried: {why}", _FIRST)]
    if broken := {name: one["error"] for name, one in said.items() if "error" in one}:
        findings += grouped("all-reduce", "fail", broken, _MEET)
    for backend in ("gloo", "nccl"):
        failed = {
            name: f"{backend}: {one[backend]['error']}"
            for name, one in said.items()
            if "error" in one.get(backend, {})
        }
        findings += grouped("all-reduce", "fail", failed, _MEET)
    if findings:
        return findings
    took = {
        backend: max(one[backend]["seconds"] for one in said.values() if backend in one)
        for backend in ("gloo", "nccl")
        if any(backend in one for one in said.values())
    }
    interface = {str(one.get("interface")) for one in said.values()}
    text = ", ".join(f"{backend} in {seconds:.1f} s" for backend, seconds in took.items())
    return [Finding("all-reduce", "ok", EVERYWHERE, f"{text}, by {named(sorted(interface))}")]


_FIRST = "Mend what else failed, and run it again"
_MEET = (
    "Mend names and ports where they fail above; else set network_interface in the cluster file to"
    " the network between nodes (`ip -brief address` shows them)"
)
