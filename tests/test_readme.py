"""The README's commands and its Python do what it says, one after the other in an empty folder."""

import re
import shlex
from pathlib import Path

import pytest

from igpt.storage import open_store
from tests.cli.command import igpt
from tests.support import study
from tests.support.schemas import validated

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.long
def test_the_commands_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert commands[0] == ["igpt-jobs", "quickstart"]
    store = open_store(str(tmp_path / "igpt-store"))
    with study.cleaned(store):
        for program, *arguments in commands:
            assert program == "igpt-jobs"
            short = ["--steps", "20"] if arguments == ["quickstart"] else []
            ended = igpt(*arguments, *short, folder=tmp_path)
            assert ended.returncode == 0, (arguments, ended.stderr)
            if short:
                last = validated("quickstart", ended.stdout.splitlines()[-1])
                assert Path(last["report"]).read_text().startswith("<!doctype html>")
    assert (tmp_path / "study.html").exists()
    assert (tmp_path / "my-study" / "jobs" / "pretrain.yaml").exists()


def test_the_python_of_the_readme_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert getattr(names["features"], "shape", None) == (5, 64, 64)
    assert getattr(names["drawn"], "shape", None) == (4, 64)


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for page in [README, *(README.parent / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
