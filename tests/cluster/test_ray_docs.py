"""docs/ray.md, followed to the letter on two hosts, by somebody with an empty home."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from igpt.runs.listing import list_hints
from igpt.runs.record import open_run
from igpt.runs.state import RunState
from igpt.storage import open_store
from tests.cluster.conftest import need
from tests.cluster.test_slurm_docs import commands
from tests.support import study
from tests.support.machines import Machines, missing, until

pytestmark = pytest.mark.timeout(900)

PAGE = Path(__file__).parents[2] / "docs" / "ray.md"

BLOCKS = re.compile(r"^```(sh|yaml)( head| other)?\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Hosts(Machines):
    """A head and another machine, with nothing on them; Ray's own folder is each machine's."""

    daemon = "mkdir -p /tmp/ray\nmount -t tmpfs none /tmp/ray\nsleep infinity &\nwait $!\n"

    def start(self) -> None:
        """Returns when both can be entered."""
        self.connect()
        for name in self.names:
            self.start_node(name)
            until(lambda name=name: self.pids(name, "sleep"), f"{name} is there")

    def bash(self, name: str, script: str, environment: dict[str, str], folder: Path) -> str:
        """What a script prints on a machine; fails where it does."""
        inside = ("--mount", "--uts", "--net", "--pid")
        target = str(self.pids(name, "sleep")[0])
        done = subprocess.run(
            ["nsenter", "--target", target, *inside, "bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    need(missing({}, "a Ray cluster of several hosts"))
    made = Hosts(tmp_path_factory.mktemp("hosts"), ["head", "other"])
    try:
        made.start()
        yield made
    finally:
        made.stop()


def scripts(page: str) -> tuple[str, str, str]:
    """What is typed on the head first, on the other machine, and then on the head.

    Files are saved where their first lines say. The environment is installed already.
    """
    begin: dict[str, list[str]] = {"head": [], "other": []}
    lines: list[str] = []
    for language, where, text in BLOCKS.findall(page[page.index("\n## Start a cluster") :]):
        if where:
            begin[where.strip()].append(text)
        elif language == "sh":
            lines.append(text)
        else:
            name = text.partition("\n")[0].removeprefix("# ")
            lines.append(f"cat > {name} <<'END OF FILE'\n{text}END OF FILE\n")
    return "\n".join(begin["head"]), "\n".join(begin["other"]), "\n".join(lines)


@pytest.mark.long
def test_the_page_is_true_to_the_letter(hosts: Hosts, tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = f"{commands(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COLUMNS": "120"}
    environment["RAY_worker_niceness"] = "0"  # other tests are at work on the same CPUs
    head, other, rest = scripts(PAGE.read_text())
    hosts.bash("head", head, environment, home)
    hosts.bash("other", other, environment, home)
    said = hosts.bash("head", rest, environment, home)
    assert "http://" in said
    store = open_store(str(home / "study" / "igpt-store"))
    states = {hint.run.rpartition("-")[0]: hint.state for hint in list_hints(store)}
    assert states == dict.fromkeys(("shard", "small", "probe"), RunState.FINISHED)
    runs = [open_run(store, identifier) for identifier in store.children("runs")]
    (trained,) = (run for run in runs if run.id.startswith("small-"))
    assert len(study.losses(trained)) == 300
    drivers = hosts.bash("head", "cat /tmp/ray/session_latest/logs/job-driver-*", environment, home)
    assert trained.claims()[-1].workers == 2, drivers  # as many as there was room for
    assert list((home / "study").glob("*.html"))


def test_the_page_installs_what_the_project_installs() -> None:
    page = PAGE.read_text()
    install = page[page.index("## Install\n") : page.index("\n## Start a cluster")]
    assert "pip install -c constraints.txt -e .\n" in install
    assert (PAGE.parents[1] / "constraints.txt").exists()
