"""docs/slurm.md, followed to the letter on a real Slurm, by somebody with an empty home."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from igpt.runs.listing import list_hints
from igpt.runs.record import open_run
from igpt.runs.state import RunState
from igpt.storage import open_store
from tests.support import study
from tests.support.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.timeout(900)

PAGE = Path(__file__).parents[2] / "docs" / "slurm.md"


def script(page: str) -> str:
    """The page's commands, one after the other, and its files, saved where their first lines say.

    The environment is installed already.
    """
    _, install, rest = page.partition("## Install\n")
    assert install
    rest = rest[rest.index("\n## ") :]
    lines = ["set -euo pipefail"]
    for language, text in re.findall(r"^```(sh|yaml)\n(.*?)^```", rest, re.DOTALL | re.MULTILINE):
        if language == "sh":
            lines.append(text)
        else:
            name = text.partition("\n")[0].removeprefix("# ")
            lines.append(f"cat > {name} <<'END OF FILE'\n{text}END OF FILE\n")
    return "\n".join(lines)


def commands(folder: Path) -> Path:
    """A folder with the commands of the environment that the tests run in."""
    folder.mkdir()
    modules = {"python": "", "igpt-jobs": " -m igpt.cli", "ray": " -m ray.scripts.scripts"}
    for name, command in modules.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.long
def test_the_page_is_true_to_the_letter(private_slurm: SlurmCluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = f"{commands(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}"
    store = open_store(str(home / "study" / "igpt-store"))
    with study.cleaned(store):
        ended = subprocess.run(
            ["bash", "-c", script(PAGE.read_text())],
            cwd=home,
            env=os.environ | {"PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    states = {hint.run.rpartition("-")[0]: hint.state for hint in list_hints(store)}
    assert states == dict.fromkeys(("shard", "small", "probe"), RunState.FINISHED)
    runs = [open_run(store, identifier) for identifier in store.children("runs")]
    assert {len(run.claims()) for run in runs} == {1}
    (trained,) = (run for run in runs if run.id.startswith("small-"))
    assert len(study.losses(trained)) == 300
    assert trained.claims()[0].workers == 2
    assert list((home / "study").glob("*.html"))
    assert not private_slurm.squeue()


def test_the_page_installs_what_the_project_installs() -> None:
    page = PAGE.read_text()
    install = page[page.index("## Install\n") : page.index("\n## Look")]
    assert "pip install -c constraints.txt -e .\n" in install
    assert (PAGE.parents[1] / "constraints.txt").exists()
