"""The doctor's parts that need no cluster: what reports come to, and how they are put together."""

import ast
import json
import random
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igpt.clusters.doctor import compute, machine, node, storing
from igpt.clusters.doctor.diagnosis import Asked, diagnose
from igpt.clusters.doctor.examine import way_to
from igpt.clusters.doctor.finding import Finding, named
from igpt.clusters.doctor.gathering import Gathered
from igpt.clusters.doctor.ray import workers
from igpt.clusters.doctor.report import Collector, Errand, Report, some_ports, sources
from igpt.clusters.doctor.slurm import srun
from igpt.clusters.ray.config import Elastic, RayCluster
from igpt.clusters.slurm.config import SlurmCluster

CODE = Path("/shared/code/abc")
ASKED = Asked("slurm", workers=1)
DISK = {"path": "/tmp", "free": 50e9, "exists": True}
VERSIONS = dict.fromkeys(machine.PACKAGES, "1.0")


def facts(rank: int, **changed: Any) -> dict[str, Any]:
    """What a sound node of three says."""
    sound = {
        "hello": {
            "name": f"n{rank}",
            "address": f"10.0.0.{rank}",
            "python": [3, 11, 7],
            "executable": "/venv/bin/python",
            "cards": 0,
        },
        "packages": VERSIONS,
        "code": {"origin": f"{CODE}/igpt/__init__.py"},
        "disks": {"TMPDIR": DISK, "cache": DISK, "folder": DISK},
        "ports": {"tried": [33000, 44000], "busy": [], "closed": {}},
        "names": {
            "forward": {f"n{one}": {"found": [f"10.0.0.{one}"]} for one in range(3)},
            "reverse": {f"10.0.0.{one}": {"found": [f"n{one}"]} for one in range(3)},
        },
        "devices": {"names": [], "cuda": None},
        "reduce": {"interface": "eth0", "gloo": {"seconds": 0.1}},
        "store": {"seen": True, "claimed": rank == 0, "rate": 80.0},
        "imports": {"broken": {}},
        "end": True,
    }
    return sound | changed


def world(*, ahead: tuple[float, ...] = (-0.1, -0.2, -0.3), **changed: Any) -> Gathered:
    """Three nodes, of which n2 says something else."""
    reports = [Report(rank, facts(rank), ahead[rank]) for rank in (0, 1)]
    return Gathered([*reports, Report(2, facts(2, **changed), ahead[2])], 3, CODE)


CLIENT = Report(
    -1,
    {
        "hello": facts(0)["hello"] | {"name": "client"},
        "packages": VERSIONS,
        "disks": {"cache": DISK, "folder": DISK},
        "store": {"rate": 90.0},
    },
)


def bad(
    gathered: Gathered, asked: Asked = ASKED, client: Report | None = CLIENT
) -> list[tuple[str, str, str, str]]:
    """Check, level, place and text of all that is not well; each failure says what to do."""
    found = [one for one in diagnose(client, gathered, asked) if one.level != "ok"]
    assert all(one.mend for one in found if one.level == "fail"), found
    return [(one.check, one.level, one.where, one.found) for one in found]


def test_sound_reports_pass_every_check_once() -> None:
    assert bad(world()) == []
    checks = [one.check for one in diagnose(CLIENT, world(), ASKED)]
    assert len(set(checks)) == len(checks) == 12


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"packages": VERSIONS | {"webdataset": None}},
            ("packages", "fail", "n2", "there is no webdataset"),
        ),
        (
            {"imports": {"broken": {"pyarrow": "ImportError: libarrow.so"}}},
            ("packages", "fail", "n2", "import pyarrow: ImportError: libarrow.so"),
        ),
        (
            {"imports": {"error": "no answer within 60 s at: import sklearn", "late": True}},
            ("packages", "warn", "n2", "no answer within 60 s at: import sklearn"),
        ),
        (
            {"imports": {"error": "the process ended (-9) at: import sklearn: it said nothing"}},
            (
                *("packages", "fail", "n2"),
                "import everything: the process ended (-9) at: import sklearn: it said nothing",
            ),
        ),
        (
            {"packages": {"error": "no answer within 30 s"}},
            ("packages", "warn", "n2", "not known: no answer within 30 s"),
        ),
        (
            {"packages": VERSIONS | {"igpt-jobs": "?"}},
            (
                *("code", "fail", "n2"),
                "igpt-jobs is there and not installed, so that its jobs are not found by name",
            ),
        ),
        ({"code": {"origin": None}}, ("code", "fail", "n2", "there is no igpt-jobs")),
        (
            {"code": {"origin": "/venv/igpt/__init__.py"}},
            ("code", "fail", "n2", f"igpt-jobs comes from /venv/igpt and not from {CODE}"),
        ),
        (
            {"store": {"error": "refused", "expected": "a key", "mend": "Set it"}},
            ("store", "fail", "n2", "refused; expected: a key"),
        ),
        (
            {"store": {"missing": "pydantic"}},
            ("store", "warn", "n2", "not tried: there is no pydantic"),
        ),
        (
            {"store": {"seen": False, "claimed": False, "rate": 80.0}},
            *[
                (
                    "store",
                    "fail",
                    "n2",
                    "what the client has written is not there: it is another store",
                )
            ],
        ),
        (
            {"store": {"seen": True, "claimed": True, "rate": 80.0}},
            ("store", "fail", "n0, n2", "n0, n2 could each create the same object"),
        ),
        (
            {"store": {"seen": True, "claimed": False, "rate": 0.5}},
            ("upload", "warn", "n2", "0.5 MB/s"),
        ),
        (
            {"disks": {"TMPDIR": {"path": "/tmp", "error": "No space left on device"}}},
            ("disk", "fail", "n2", "TMPDIR (/tmp) cannot be written: No space left on device"),
        ),
        (
            {"disks": {"cache": DISK | {"free": 1e9}}},
            ("disk", "warn", "n2", "cache (/tmp) has 1.0 GB left"),
        ),
        (
            {"disks": {"folder": DISK | {"exists": False}}},
            ("disk", "fail", "n2", "folder (/tmp) is not there"),
        ),
        (
            {"ports": {"tried": [33000, 44000], "busy": [], "closed": {"0": {"44000": "refused"}}}},
            *[("ports", "fail", "n2 -> n0", "ports 44000 are closed, 33000 are open: refused")],
        ),
        (
            {
                "ports": {
                    "tried": [33000, 44000],
                    "busy": [],
                    "closed": {"0": {"33000": "timed out", "44000": "timed out"}},
                }
            },
            ("ports", "fail", "n2 -> n0", "no port can be reached: timed out"),
        ),
        (
            {"ports": {"tried": [33000, 44000], "busy": [33000, 44000], "closed": {}}},
            ("ports", "fail", "n2", "none of 33000, 44000 is free"),
        ),
        (
            {"reduce": {"interface": "eth0", "gloo": {"error": "timed out"}}},
            ("all-reduce", "fail", "n2", "gloo: timed out"),
        ),
        (
            {"reduce": {"error": "no answer within 45 s"}},
            ("all-reduce", "fail", "n2", "no answer within 45 s"),
        ),
        (
            {"reduce": {"skipped": {"missing": ["n1"], "unready": []}}},
            ("all-reduce", "fail", "all nodes", "not tried: the nodes did not meet"),
        ),
        ({"error": "ValueError: x"}, ("nodes", "fail", "n2", "ValueError: x")),
    ],
)
def test_what_one_node_says_is_named_with_the_node(
    changed: dict[str, Any], expected: tuple[str, str, str, str]
) -> None:
    assert bad(world(**changed)) == [expected]


def test_a_port_that_is_taken_where_it_leads_is_no_closed_port() -> None:
    ports = {"tried": [33000, 44000], "busy": [], "closed": {"2": {"44000": "refused"}}}
    gathered = world(ports={"tried": [33000, 44000], "busy": [44000], "closed": {}})
    first = replace(gathered.reports[0], facts=facts(0, ports=ports))
    assert bad(replace(gathered, reports=[first, *gathered.reports[1:]])) == []


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        ((0.0, -2.5, 0.0), []),
        ((0.0, 0.0, 120.0), [("clock", "fail", "n2", "120 s ahead, by the client's clock")]),
        ((0.0, 0.0, -10.0), [("clock", "warn", "n2", "10 s behind, by the client's clock")]),
        (
            (-120.0, -121.0, -120.5),
            [("clock", "fail", "client", "120 s ahead, by the clocks of all nodes")],
        ),
    ],
)
def test_a_clock_that_is_off_is_named_also_where_it_is_the_clients(
    ahead: tuple[float, ...], expected: list[Any]
) -> None:
    assert bad(world(ahead=ahead)) == expected


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        ({"n1": {"error": "Name or service not known"}}, ("fail", "n1 does not resolve: Name or")),
        ({"n1": {"found": ["127.0.1.1"]}}, ("fail", "n1 leads to 127.0.1.1, and is reached at")),
        ({"n1": {"found": ["192.0.2.1"]}}, ("warn", "n1 leads to 192.0.2.1, and is reached at")),
        ({"n2": {"found": ["127.0.1.1"]}}, None),  # its own name: nobody else asks there
    ],
)
def test_a_name_that_does_not_lead_to_its_node_is_named(
    forward: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    names = facts(2)["names"]
    found = bad(world(names=names | {"forward": names["forward"] | forward}))
    if expected is None:
        assert found == []
    else:
        ((check, level, where, text),) = found
        assert (check, level, where) == ("names", expected[0], "n2")
        assert text.startswith(expected[1])


def test_an_address_without_a_name_is_a_warning() -> None:
    names = facts(2)["names"]
    back = names["reverse"] | {"10.0.0.1": {"error": "Unknown host"}}
    expected = ("names", "warn", "n2", "10.0.0.1 (n1) has no name")
    assert bad(world(names=names | {"reverse": back})) == [expected]


@pytest.mark.parametrize(
    ("devices", "cards", "asked", "expected"),
    [
        (["A100"] * 2, 2, Asked("slurm", 2, gpus=2, device="A100"), []),
        ([], 2, ASKED, ["2 GPUs are there, and torch, built without CUDA, sees none"]),
        (
            ["A100"],
            1,
            Asked("slurm", 1, gpus=2),
            ["torch sees 1 GPUs, the cluster file asks for 2"],
        ),
        (["A100"], 1, Asked("slurm", 4), ["1 GPUs for 4 workers"]),
        (["H100"], 1, Asked("slurm", 1, device="A100"), ["H100"]),
    ],
)
def test_accelerators_are_what_the_cluster_file_asks_for(
    devices: list[str], cards: int, asked: Asked, expected: list[str]
) -> None:
    reports = []
    for rank in range(2):
        said = facts(rank, devices={"names": devices, "cuda": None})
        reports.append(Report(rank, said | {"hello": said["hello"] | {"cards": cards}}, 0.0))
    found = [one for one in bad(Gathered(reports, 2, CODE), asked) if one[0] == "accelerators"]
    assert [one[2] for one in found] == ["n0, n1"] * len(expected)
    for one, text in zip(found, expected, strict=True):
        assert one[3].startswith(text)


def test_nodes_of_different_kinds_or_versions_are_told_apart() -> None:
    found = bad(
        world(
            devices={"names": ["A100"], "cuda": "12"},
            packages=VERSIONS | {"torch": "2.0", "scipy": "0.9"},
        )
    )
    assert ("accelerators", "warn", "n2", "A100") in found
    assert ("accelerators", "warn", "n0, n1", "no GPU") in found
    assert ("packages", "fail", "n2", "torch 2.0") in found
    assert ("packages", "warn", "n2", "scipy 0.9") in found


def test_a_head_that_has_no_workers_needs_no_accelerator() -> None:
    gpu = {"names": ["A100"], "cuda": "12"}
    reports = [Report(0, facts(0)), *(Report(rank, facts(rank, devices=gpu)) for rank in (1, 2))]
    gathered = Gathered(reports, 3, CODE, idle=frozenset({"n0"}))
    assert bad(gathered, Asked("ray", 1)) == []
    mixed = diagnose(CLIENT, replace(gathered, idle=frozenset()), Asked("ray", 1))
    (found,) = [one for one in mixed if one.check == "accelerators" and "n0" in one.where]
    assert "accelerator_type" in found.mend


@pytest.mark.parametrize(
    ("cluster", "fitting", "why"),
    [
        (RayCluster(workers=4, cpus_per_worker=2), 4, None),
        (RayCluster(workers=Elastic(min=2, max=99), cpus_per_worker=3), 2, None),
        (RayCluster(workers=5, cpus_per_worker=2), 4, "wants 5 at least"),
        (RayCluster(workers=3, placement="STRICT_SPREAD"), 2, "wants 3 at least"),
        (RayCluster(workers=5, placement="STRICT_PACK"), 4, "wants 5 at least"),
        (
            RayCluster(workers=1, gpus_per_worker=1, accelerator_type="A100"),
            *(0, "wants 1 at least: no node has GPU, accelerator_type:A100"),
        ),
        (RayCluster(workers=8, cpus_per_worker=1, resources_per_worker={"disk": 0.1}), 10, None),
    ],
)
def test_workers_that_could_never_all_be_there_are_no_good_sign(
    cluster: RayCluster, fitting: int, why: str | None
) -> None:
    nodes = [{"CPU": 4.0, "memory": 1e9}, {"CPU": 4.0, "disk": 1.0, "node:10.0.0.2": 1.0}]
    if cluster.resources_per_worker:
        nodes[1]["CPU"] = 16.0
    (found,) = workers(cluster, nodes)
    assert found.found.startswith(f"room for {fitting} workers of {cluster.cpus_per_worker} CPU")
    assert found.level == ("ok" if why is None else "fail")
    assert why is None or found.found.endswith(why)
    assert bool(found.mend) == (why is not None)


def test_a_sum_over_some_of_the_nodes_leaves_no_other_behind() -> None:
    """By gloo both times: NCCL needs GPUs, and the nodes that have none are not to wait for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    order = {"world": 3, "address": "127.0.0.1", "port": port, "interface": "lo"}
    order["sums"] = [("gloo", [0, 1, 2]), ("other", [1, 2])]
    text = Path(str(compute.__file__)).read_text().replace("backend=backend", 'backend="gloo"')
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = []
    try:
        for rank, process in enumerate(ranks):
            assert process.stdin is not None
            process.stdin.write(json.dumps(order | {"rank": rank}) + "\n")
            process.stdin.flush()
        for process in ranks:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            said.append(next(json.loads(line) for line in lines if '"reduce"' in line)["reduce"])
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    member = ["gloo", "interface", "other"]
    assert [sorted(one) for one in said] == [["gloo", "interface"], member, member]
    assert all("seconds" in one["gloo"] for one in said)
    assert all("seconds" in one["other"] for one in said[1:])


def test_a_python_that_is_too_old_or_another_is_named() -> None:
    hello = facts(2)["hello"]
    assert bad(world(hello=hello | {"python": [3, 9, 2]})) == [("python", "fail", "n2", "3.9.2")]
    assert bad(world(hello=hello | {"python": [3, 12, 1]})) == [
        ("python", "fail", "n0, n1", "3.11.7"),
        ("python", "fail", "n2", "3.12.1"),
    ]


def test_ray_has_to_be_the_same_on_the_client_only_where_it_submits_to_ray() -> None:
    client = replace(CLIENT, facts={**CLIENT.facts, "packages": VERSIONS | {"ray": "2.9"}})
    text = "ray 1.0 on all nodes, 2.9 on the client"
    assert bad(world(), client=client) == [("packages", "warn", "client", text)]
    ray = Asked("ray", workers=1)
    assert bad(world(), ray, client) == [("packages", "fail", "client", text)]


def test_nodes_that_said_nothing_or_not_all_are_named() -> None:
    gathered = world()
    silent = replace(gathered, nodes=5, trouble="bash: no such file")
    said = "2 of 5 said nothing; heard last: bash: no such file"
    assert bad(silent) == [("nodes", "fail", "not n0, n1, n2", said)]
    half = {key: value for key, value in facts(2).items() if key in ("hello", "packages")}
    reports = [*gathered.reports[:2], Report(2, half, 0.0)]
    stopped = "stopped in the middle of the examination"
    assert ("nodes", "fail", "n2", stopped) in bad(replace(gathered, reports=reports))
    only_error = [*gathered.reports[:2], Report(2, {"error": "OSError: x"})]
    assert bad(replace(gathered, reports=only_error)) == [("nodes", "fail", "node 2", "OSError: x")]


def test_without_any_node_the_client_is_still_judged() -> None:
    none = Gathered((), 2, trouble="no answer", mend="Wait")
    found = diagnose(CLIENT, none, ASKED)
    assert found[0] == Finding("nodes", "fail", "all nodes", "no answer", "Wait")
    assert [one.check for one in found] == ["nodes", "store", "disk"]
    assert [one.check for one in diagnose(None, none, ASKED)] == ["nodes"]


def test_many_names_are_abbreviated() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named([f"n{one}" for one in range(9)]) == "n0, n1, n2, n3 and 5 more"


def test_lines_of_nodes_in_any_mixture_and_among_others_give_their_reports(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = {"text": "x" * 5000, "é": "\n"}
    streams = []
    for rank in range(3):
        speaker = node.Speaker(rank)
        speaker.say(clock=1000.0 + rank)
        speaker.say(hello={"name": f"n{rank}"}, long=long)
        speaker.say(clock=1009.0 + rank, end=True)
        streams.append(capsys.readouterr().out.splitlines())
    assert max(len(line) for stream in streams for line in stream) < 700
    collector = Collector()
    for number in range(max(map(len, streams))):
        collector.feed("module: command not found\n")
        for stream in streams:
            if number < len(stream):
                # The first word is a second on its way, the last one ten.
                collector.feed(f"0: {stream[number]}\n", 1001.0 if number == 0 else 1019.0)
    assert collector.ended() == 3
    assert [report.name for report in collector.reports()] == ["n0", "n1", "n2"]
    assert [report.ahead for report in collector.reports()] == [-1.0, 0.0, 1.0]
    assert all(report.fact("long") == long for report in collector.reports())
    assert set(collector.other) == {"module: command not found"}


def test_nodes_run_texts_that_an_old_python_can_read() -> None:
    for module in (node, machine, compute, storing):
        text = Path(str(module.__file__)).read_text()
        tree = ast.parse(text, feature_version=(3, 9))
        imported = {
            name.partition(".")[0]
            for statement in tree.body
            if isinstance(statement, ast.Import | ast.ImportFrom)
            for name in (
                [statement.module or ""]
                if isinstance(statement, ast.ImportFrom)
                else [alias.name for alias in statement.names]
            )
        }
        assert imported <= sys.stdlib_module_names | {"__future__"}


def test_the_texts_fit_into_a_pipe_that_nobody_reads_yet() -> None:
    assert len(sources().encode()) < 64 << 10  # else a job in the queue would block the client


def test_ports_are_spread_over_the_range() -> None:
    random.seed(0)
    ports = some_ports()
    assert list(ports) == sorted(set(ports))
    assert ports[0] > 1024
    assert ports[-1] < 65536


@pytest.mark.parametrize(
    ("gpus", "gres", "expected"),
    [
        (8, None, 8),
        ("a100:4", None, 4),
        ("a100", None, 1),
        ("a100:2,h100:2", None, 4),
        (0, None, None),
        (None, None, None),
        (None, "gpu", 1),
        (None, "gpu:2", 2),
        (None, "lustre:1,gpu:a100:4", 4),
        (None, "lustre:1", None),
    ],
)
def test_the_gpus_of_a_slurm_file(
    gpus: int | str | None, gres: str | None, expected: int | None
) -> None:
    assert way_to(SlurmCluster(gpus_per_node=gpus, gres=gres)).asked.gpus == expected


def test_srun_gets_what_a_run_gets_and_nothing_that_it_does_not_know() -> None:
    cluster = SlurmCluster(
        workers=4,
        nodes=2,
        cpus_per_worker=3,
        gpus_per_node="a100:2",
        mem="0",
        partition="gpu",
        account="us",
        qos="long",
        constraint="a100",
        reservation="ours",
        exclude="n9",
        exclusive=True,
        mail_user="me@example.org",
        mail_type="END",
        sbatch={"nice": 100},
        srun_args=["--container-image=/x.sqsh"],
        setup=["module load cuda"],
        python="python3",
        network_interface="ib0",
    )
    errand = Errand("token", "s3://bucket/x", (1, 2), "/shared folder", "ib0")
    *flags, image, bash, c, script = srun(cluster, errand, "name", Path("/shared folder/code"))
    assert sorted(flags[1:]) == [
        *("--account=us", "--chdir=/", "--constraint=a100", "--cpus-per-task=6", "--exclude=n9"),
        *("--exclusive", "--export=ALL", "--gpus-per-node=a100:2", "--job-name=name"),
        *("--kill-on-bad-exit=0", "--mem=0", "--nice=100", "--nodes=2", "--ntasks-per-node=1"),
        *("--partition=gpu", "--qos=long", "--reservation=ours", "--time=6", "--wait=0"),
    ]
    assert (flags[0], image, bash, c) == ("srun", "--container-image=/x.sqsh", "bash", "-c")
    lines = script.splitlines()
    assert lines[0] == "exec 3<&0 </dev/null"
    assert lines[-2] == "module load cuda"
    assert lines[-1].startswith("exec python3 -u -c '")
    assert "'--folder=/shared folder' --interface=ib0 --rank=\"$SLURM_PROCID\"" in lines[-1]
    assert "PYTHONPATH='/shared folder/code'" in script
