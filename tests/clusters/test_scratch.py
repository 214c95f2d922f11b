"""The scratch folder of a node's ranks, which a killed parent leaves behind."""

import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from igpt.clusters import cancel, resume
from igpt.clusters.ranks.scratch import remove_abandoned, scratch_folder
from igpt.storage import Store
from tests.support import study


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The TMPDIR of this process and of those that it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_what_a_killed_parent_leaves_is_removed_by_the_next_once_its_ranks_are_gone(
    root: Store, temporary: Path
) -> None:
    run = study.start(root, study.cluster(), "schedule.steps=100000")
    study.reached(run, 5)
    (left,) = temporary.iterdir()
    ranks = study.processes(run, "igpt.jobs")
    study.send(ranks, signal.SIGSTOP)
    study.send([pid for pid in study.processes(run) if pid not in ranks], signal.SIGKILL)
    study.until(lambda: study.processes(run) == ranks, "the parent is gone")

    remove_abandoned()
    assert left.exists()  # a rank may still be saving

    study.kill(run)
    assert left.exists()
    resume(run)
    study.until(lambda: not left.exists(), "the next parent has removed it")
    study.until(lambda: len(run.claims()) == 2, "the second attempt claims")
    cancel(run)
    study.ended(run)
    assert list(temporary.iterdir()) == []


def test_a_new_folder_is_never_taken_for_an_abandoned_one(temporary: Path) -> None:
    def make(_: int) -> bool:
        with scratch_folder() as (folder, _hold):
            (folder / "file").touch()
            remove_abandoned()
            return (folder / "file").exists()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(make, range(200)))
    assert list(temporary.iterdir()) == []


def test_folders_of_other_hosts_and_other_programs_stay(temporary: Path) -> None:
    with scratch_folder() as (mine, _hold):
        prefix = mine.name[: -len("-12345678")]
    others = [temporary / f"{prefix}-other-12345678", temporary / "igpt-checkpoint-12345678"]
    for folder in others:
        folder.mkdir()
    link = temporary / f"{prefix}-abcdefgh"
    link.symlink_to(others[1])
    (temporary / f"{prefix}-abandond").mkdir()
    remove_abandoned()
    assert sorted(temporary.iterdir()) == sorted([*others, link])
