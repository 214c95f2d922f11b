"""`igpt-jobs doctor` on a real Slurm of two nodes names what is broken, where, and what to do."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from igpt.config import dump_yaml
from tests.cli.command import igpt
from tests.cluster.scenario import where
from tests.support.s3_server import S3Server
from tests.support.schemas import validated
from tests.support.slurm import until
from tests.support.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.timeout(300)

#: What is asked, in the order of the table.
CHECKS = [
    *("nodes", "code", "python", "packages", "store", "upload", "disk", "clock", "names", "ports"),
    *("accelerators", "all-reduce"),
]


def cluster_file(folder: Path, **fields: Any) -> None:
    """Writes cluster.yaml."""
    (folder / "cluster.yaml").write_text(dump_yaml(where(folder, **fields)))


def doctor(folder: Path, *arguments: str, store: str | None = None) -> tuple[int, list[Any]]:
    """The exit code and the findings; what is printed is what the schema says."""
    ended = igpt(
        *("doctor", "--cluster", "cluster.yaml", "--json", *arguments),
        folder=folder,
        store=store or str(folder / "store"),
    )
    document = validated("doctor", ended.stdout)
    return ended.returncode, document["findings"]


def failures(findings: list[Any]) -> dict[str, tuple[str, str]]:
    """By check: where it failed, and what was found; each says what to do."""
    failed = [one for one in findings if one["level"] == "fail"]
    assert all(one["mend"] for one in failed)
    return {one["check"]: (one["where"], one["found"]) for one in failed}


def inside(cluster: SlurmCluster, node: str, *command: str) -> None:
    """Runs a command among the node's mounts and in its network."""
    slurmd = str(cluster.pids(node, f"slurmd -D -N {node}")[0])
    subprocess.run(["nsenter", "-t", slurmd, "-m", "-n", "-u", *command], check=True)


@contextmanager
def relay(address: str, endpoint: str) -> Iterator[str]:
    """The endpoint as it is reached by way of `address`."""
    target = urlsplit(endpoint)
    assert target.hostname
    assert target.port
    upstream = (target.hostname, target.port)

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):  # the listener is shut down
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(upstream)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    with socket.create_server((address, 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://{address}:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_sound_cluster_passes_every_check_and_nothing_is_left_of_it(
    private_slurm: SlurmCluster, tmp_path: Path
) -> None:
    cluster_file(tmp_path, setup=["read -r line", "export OF_SETUP=1"])
    code, findings = doctor(tmp_path)
    assert [one["check"] for one in findings] == CHECKS
    # A loaded machine may be slow to upload.
    assert {one["level"] for one in findings if one["check"] != "upload"} == {"ok"}
    assert code == 0
    assert not list((tmp_path / "store").rglob("*"))
    private_slurm.wait_idle()


def test_a_node_name_that_another_node_cannot_resolve_is_named(
    private_slurm: SlurmCluster, tmp_path: Path
) -> None:
    known = (private_slurm.folder / "hosts").read_text().splitlines()
    (tmp_path / "hosts").write_text("\n".join(line for line in known if " n1" not in line) + "\n")
    inside(private_slurm, "n2", "mount", "--bind", str(tmp_path / "hosts"), "/etc/hosts")
    cluster_file(tmp_path)
    code, findings = doctor(tmp_path)
    failed = failures(findings)
    assert code == 3
    assert failed.keys() == {"names"}
    assert failed["names"][0] == "n2"
    assert failed["names"][1].startswith("n1 does not resolve: ")


@pytest.mark.s3
def test_wrong_credentials_of_one_node_are_named_and_that_node_is_heard(
    private_slurm: SlurmCluster, s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    with relay(private_slurm.gateway, s3_server.endpoint) as endpoint:
        (tmp_path / "igpt.yaml").write_text(f"s3: {{endpoint: '{endpoint}'}}\n")
        keys = tmp_path / "keys"
        keys.write_text("export AWS_SECRET_ACCESS_KEY=wrong\n")
        cluster_file(tmp_path, setup=[f'[ "$SLURMD_NODENAME" = n1 ] || source {keys}'])
        code, findings = doctor(tmp_path, store=f"{s3_bucket}/study")
    failed = failures(findings)
    assert code == 3
    assert failed.keys() == {"store"}
    assert failed["store"][0] == "n2"
    assert "refuses our credentials (SignatureDoesNotMatch" in failed["store"][1]
    assert "AWS_SECRET_ACCESS_KEY" in next(o for o in findings if o["level"] == "fail")["mend"]
    assert s3_server.client.list_objects_v2(Bucket=s3_bucket[5:])["KeyCount"] == 0


def test_a_full_disk_of_one_node_is_named(
    private_slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, variable in (("scratch", "TMPDIR"), ("cache", "IGPT_CACHE")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
        tiny = ("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / name))
        inside(private_slurm, "n2", *tiny)
    cluster_file(tmp_path)
    code, findings = doctor(tmp_path)
    full = "cannot be written: No space left on device"
    assert code == 3
    assert failures(findings).keys() == {"disk"}
    assert [(one["where"], one["found"]) for one in findings if one["check"] == "disk"] == [
        ("n2", f"TMPDIR ({tmp_path / 'scratch'}) {full}"),
        ("n2", f"cache ({tmp_path / 'cache'}) {full}"),
    ]


@pytest.mark.parametrize("package", ["webdataset", "pydantic", "torch"])
def test_a_package_that_one_node_lacks_is_named(
    private_slurm: SlurmCluster, tmp_path: Path, package: str
) -> None:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    (tmp_path / "empty").mkdir()
    place = str(Path(spec.origin).parent)
    inside(private_slurm, "n2", "mount", "--bind", str(tmp_path / "empty"), place)
    cluster_file(tmp_path)
    code, findings = doctor(tmp_path)
    failed = failures(findings)
    assert code == 3
    assert failed.pop("packages") == ("n2", f"there is no {package}")
    assert failed.keys() <= {"all-reduce"}  # which needs torch on all nodes


def test_a_clock_that_is_two_minutes_off_is_named(
    private_slurm: SlurmCluster, tmp_path: Path
) -> None:
    faketime = shutil.which("faketime")
    if faketime is None:
        if os.environ.get("CI"):
            pytest.fail("there is no faketime: apt-get install faketime")
        pytest.skip("there is no faketime: apt-get install faketime")
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'[ "$SLURMD_NODENAME" != n2 ] || set -- {faketime} -f -120s {sys.executable} "$@"\n'
        f'[ "$SLURMD_NODENAME" = n2 ] || set -- {sys.executable} "$@"\n'
        'exec "$@"\n'
    )
    python.chmod(0o755)
    cluster_file(tmp_path, python=str(python))
    code, findings = doctor(tmp_path)
    failed = failures(findings)
    assert (code, "clock" in failed) == (3, True), findings
    where_, found = failed["clock"]
    assert where_ == "n2"
    seconds = int(found.removesuffix(" s behind, by the client's clock"))
    assert 115 <= seconds <= 130


def test_closed_ports_between_two_nodes_are_named(
    private_slurm: SlurmCluster, tmp_path: Path
) -> None:
    # Not to the controller's machine: there srun itself listens.
    to = ("to", private_slurm.nodes["n1"].address, "ipproto", "tcp", "dport", "47000-61000")
    inside(private_slurm, "n2", "ip", "rule", "add", *to, "prohibit")
    cluster_file(tmp_path)
    code, findings = doctor(tmp_path)
    where_, found = failures(findings)["ports"]
    assert code == 3
    assert where_ == "n2 -> n1"
    shut, still = found.split(" are closed, ")
    assert all(int(port) >= 47000 for port in shut.removeprefix("ports ").split(", "))
    assert all(int(port) < 47000 for port in still.partition(" are open")[0].split(", "))


def test_a_node_that_cannot_start_is_named_and_the_other_is_heard(
    private_slurm: SlurmCluster, tmp_path: Path
) -> None:
    cluster_file(tmp_path, setup=['[ "$SLURMD_NODENAME" = n1 ] || { echo no licence; exit 1; }'])
    code, findings = doctor(tmp_path)
    where_, found = failures(findings)["nodes"]
    assert code == 3
    assert where_ == "not n1"
    assert "1 of 2 said nothing" in found
    assert "no licence" in found

    cluster_file(tmp_path, setup=["echo no licence; exit 1"])
    code, findings = doctor(tmp_path)
    where_, found = failures(findings)["nodes"]
    assert (code, where_) == (3, "all nodes")
    assert found.startswith("all nodes ended without a word; heard last: ")
    assert "no licence" in found


def test_nodes_that_do_not_come_in_time_and_words_of_a_refusal_end_with_3(
    private_slurm: SlurmCluster, tmp_path: Path
) -> None:
    cluster_file(tmp_path, sbatch={"hold": True})
    code, findings = doctor(tmp_path, "--wait", "4")
    assert code == 3
    assert "PENDING (JobHeldUser)" in failures(findings)["nodes"][1]
    assert private_slurm.squeue() == ""

    cluster_file(tmp_path, partition="nowhere")
    code, findings = doctor(tmp_path)
    assert code == 3
    assert "invalid partition" in failures(findings)["nodes"][1].lower()

    private_slurm.stop_controller()
    cluster_file(tmp_path)
    code, findings = doctor(tmp_path)
    assert code == 3
    assert "Slurm cannot be reached" in failures(findings)["nodes"][1]


def test_an_interrupt_cancels_the_job(private_slurm: SlurmCluster, tmp_path: Path) -> None:
    cluster_file(tmp_path, sbatch={"hold": True})
    command = ("doctor", "--cluster", "cluster.yaml", "--store", str(tmp_path / "store"))
    process = subprocess.Popen(
        [sys.executable, "-m", "igpt.cli", *command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        until(lambda: "waiting for 2 nodes" in process.stderr.readline(), "it says that it waits")
        assert private_slurm.squeue() != ""
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    until(lambda: private_slurm.squeue() == "", "the job is gone")
    assert not list((tmp_path / "store").rglob("*"))
