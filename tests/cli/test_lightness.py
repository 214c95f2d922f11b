"""What a verb loads: nothing heavy to read or to plan. (Timing is measured in benchmarks/.)"""

import subprocess
import sys
from pathlib import Path

import pytest

from igpt.storage import Store
from tests.support import study

_HEAVY = ("torch", "ray", "sklearn", "scipy", "matplotlib", "transformers", "webdataset", "pyarrow")
_WATCHED = (*_HEAVY, "numpy", "pydantic", "boto3")


def loaded(arguments: list[str], folder: Path) -> set[str]:
    """Which of the watched packages a command has loaded by its end."""
    code = (
        "import sys\n"
        f"sys.argv = ['igpt-jobs', *{arguments!r}]\n"
        "from igpt.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"print('LOADED', *[name for name in {_WATCHED!r} if name in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(ended.stdout.splitlines()[-1].split()[1:])


def test_help_loads_nothing_but_the_command_line(tmp_path: Path) -> None:
    assert loaded(["--help"], tmp_path) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["submit", "shard", "--help"],
        [
            *("submit", "pretrain", "data=data/digits", "model.preset=igpt-s", "--dry-run"),
            "schedule.steps=2",
        ],
    ],
)
def test_reading_and_planning_load_nothing_heavy(
    root: Store, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_STORE", root.uri)
    assert loaded(arguments, tmp_path) <= {"numpy", "pydantic"}


def test_status_loads_nothing_heavy(
    root: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study.start(root, study.cluster())
    study.ended(run)
    monkeypatch.setenv("IGPT_STORE", root.uri)
    assert loaded(["status", run.id], tmp_path) <= {"pydantic"}
    assert loaded(["list"], tmp_path) <= {"pydantic"}


def test_import_igpt_loads_neither_torch_nor_ray() -> None:
    code = "import sys, igpt; igpt.Palette; print('torch' in sys.modules, 'ray' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]
