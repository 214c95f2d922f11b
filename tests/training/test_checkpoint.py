"""Checkpoints come back to the last bit, are believed only when whole, and go only when safe."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from igpt.errors import DataCorrupt, Unreachable, UserError
from igpt.model.interchange import load_model
from igpt.model.sealed import Manifest, SealedFile, pin, verified
from igpt.model.transformer import ImageGPT
from igpt.storage import Store
from igpt.storage.base import ObjectInfo
from igpt.training.checkpoint import (
    Checkpoint,
    CheckpointRef,
    Written,
    capture,
    list_committed,
    load_checkpoint,
    prune,
    restore,
    save_checkpoint,
)
from igpt.training.step import Worker
from igpt.training.writer import CheckpointWriter
from tests.support.file_systems import NO_ANSWER
from tests.training.workers import MODEL, configuration


def trained(steps: int) -> Worker:
    """A worker after some steps on random tokens."""
    worker = Worker(ImageGPT(MODEL), configuration(10), world_size=1, device=torch.device("cpu"))
    worker.prepare(12)
    for step in range(steps):
        train_once(worker, step)
    return worker


def train_once(worker: Worker, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(16, (12, 16), generator=generator).to(torch.uint16).numpy()
    worker.step(tokens, 0.003)


def checkpoint_of(worker: Worker, step: int = 3) -> Checkpoint:
    config = {"model": MODEL.model_dump(mode="json")}
    return capture(step, worker.model, worker.optimizer, config)


def save(store: Store, step: int, attempt: int = 1) -> None:
    written = save_checkpoint(store, checkpoint_of(trained(0), step), attempt, lambda: False)
    assert written.committed


def refs(*pairs: tuple[int, int]) -> list[CheckpointRef]:
    return [CheckpointRef(step, attempt) for step, attempt in pairs]


def test_weights_and_optimizer_come_back_bit_for_bit(store: Store) -> None:
    worker = trained(3)
    written = save_checkpoint(store, checkpoint_of(worker), 1, lambda: False)
    assert written.ref == CheckpointRef(3, 1)
    other = trained(1)
    loaded = load_checkpoint(store, written.ref)
    assert loaded.step == 3
    restore(loaded, other.model, other.optimizer)
    train_once(worker, 77)
    train_once(other, 77)
    for (name, ours), theirs in zip(
        worker.model.named_parameters(), other.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
        a, b = worker.optimizer.state[ours], other.optimizer.state[theirs]
        assert a.keys() == b.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(a[key], b[key]) for key in a), name
        assert a["step"] == 4


def test_the_layout_is_the_one_that_is_documented(store: Store) -> None:
    save(store, 131_072, attempt=3)
    folder = "step-000131072/attempt-3/"
    files = {info.key.removeprefix(folder): info.size for info in store.objects()}
    assert set(files) == {
        "model.safetensors", "optimizer.safetensors", "config.json", "manifest.json", "COMMITTED",
    }  # fmt: skip
    manifest = json.loads(store.get(folder + "manifest.json"))
    assert manifest["step"] == 131_072
    for entry in manifest["files"]:
        assert entry["bytes"] == files[entry["name"]]


def test_load_model_reads_a_checkpoint(store: Store) -> None:
    worker = trained(2)
    ref = save_checkpoint(store, checkpoint_of(worker), 1, lambda: False).ref
    model = load_model(f"{store.uri}/step-{ref.step:09d}")
    assert model.config == MODEL
    for name, tensor in worker.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.s3
def test_it_all_works_on_s3(s3_bucket: str) -> None:
    from igpt.storage import open_store

    store = open_store(f"{s3_bucket}/checkpoints")
    worker = trained(1)
    ref = save_checkpoint(store, checkpoint_of(worker), 1, lambda: False).ref
    save(store, 9)
    assert list_committed(store) == refs((3, 1), (9, 1))
    other = trained(0)
    restore(load_checkpoint(store, ref), other.model, other.optimizer)
    model = load_model(f"{s3_bucket}/checkpoints/step-000000003")
    for name, tensor in worker.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor)
        assert torch.equal(model.state_dict()[name], tensor)
    assert prune(store, list_committed(store), attempt=1, keep=1, milestones=()) == [ref]
    assert not store.objects("step-000000003")
    store.delete(["step-000000009/attempt-1/optimizer.safetensors"])
    with pytest.raises(DataCorrupt, match=r"optimizer\.safetensors is damaged: .* is not there"):
        load_checkpoint(store, CheckpointRef(9, 1))


def test_nothing_is_committed_once_a_newer_attempt_rules(store: Store) -> None:
    asked = []

    def superseded() -> bool:
        asked.append({info.key.rpartition("/")[2] for info in store.objects()})
        return True

    written = save_checkpoint(store, checkpoint_of(trained(0)), 1, superseded)
    assert not written.committed
    assert asked == [{"model.safetensors", "optimizer.safetensors", "config.json"}]
    assert list_committed(store) == []
    with pytest.raises(UserError, match="never finished"):
        load_checkpoint(store, written.ref)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json"])
def test_a_flipped_bit_is_found(store: Store, name: str) -> None:
    save(store, 3)
    path = Path(store.uri) / "step-000000003/attempt-1" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataCorrupt, match=f"{name} is damaged"):
        load_checkpoint(store, CheckpointRef(3, 1))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json"])
def test_a_checkpoint_of_which_a_file_was_deleted_is_damaged(store: Store, name: str) -> None:
    save(store, 3)
    store.delete([f"step-000000003/attempt-1/{name}"])
    with pytest.raises(DataCorrupt, match=f"{name} is damaged: .* is not there") as caught:
        load_checkpoint(store, CheckpointRef(3, 1))
    assert "--from STEP" in caught.value.mend


def test_a_file_whose_system_is_away_is_unreachable_and_no_damage(
    store: Store, tmp_path: Path
) -> None:
    away = Path(store.uri) / "config.json"
    away.parent.mkdir(parents=True, exist_ok=True)
    away.symlink_to(NO_ANSWER)
    manifest = Manifest(step=3, files=(SealedFile(name=away.name, bytes=0, sha256="0" * 64),))
    with pytest.raises(Unreachable, match=rf"{away} cannot be read: .* its server answers"):
        verified(store, manifest, away.name, tmp_path)


_ON_A_FULL_DISK = """
import sys
import torch
from igpt.errors import Unreachable
from igpt.data import Palette
from igpt.jobs.explaining import explain
from igpt.model.config import ModelConfig
from igpt.model.interchange import export_huggingface
from igpt.model.transformer import ImageGPT
from igpt.storage import open_store
from igpt.training.checkpoint import Checkpoint, save_checkpoint

store = sys.argv[1]
model = ImageGPT(ModelConfig(layers=1, width=64, heads=1, resolution=4, colors=16))
palette = Palette(torch.zeros(16, 3).numpy())
for write in (
    lambda: save_checkpoint(
        open_store(store), Checkpoint(3, model.state_dict(), {}, {}), 1, lambda: False
    ),
    lambda: export_huggingface(model, palette, store),
):
    try:
        write()
    except Unreachable as error:
        print(explain(error))
"""


def test_a_full_disk_is_said_with_its_place_by_checkpoint_and_export(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=64k none {disk}"
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*alone, mount], check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    done = subprocess.run(
        [
            *alone,
            f'{mount} && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            _ON_A_FULL_DISK,
            str(tmp_path / "store"),
        ],
        env={**os.environ, "TMPDIR": str(disk)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    assert len(said) == 2, done.stderr
    for line in said:
        assert line.startswith("(3, <FailureClass.STORAGE")
        assert f"{disk}/igpt-" in line
        assert "model.safetensors cannot be written: No space left on device. Free some" in line


def test_what_cannot_be_read_back_loses_its_seal(store: Store) -> None:
    class Lying:
        """A store that damages what it is given."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def sub(self, prefix: str) -> Any:
            inner = store.sub(prefix)
            upload = inner.upload

            class Inner(Lying):
                def __getattr__(self, name: str) -> Any:
                    return getattr(inner, name)

                def upload(self, key: str, path: Path) -> None:
                    path.write_bytes(path.read_bytes()[:-1])
                    upload(key, path)

            return Inner()

    with pytest.raises(DataCorrupt, match="is damaged"):
        save_checkpoint(Lying(), checkpoint_of(trained(0)), 1, lambda: False)  # type: ignore[arg-type]
    assert list_committed(store) == []


def test_a_checkpoint_of_another_network_does_not_fit(store: Store) -> None:
    checkpoint = checkpoint_of(trained(0))
    other = trained(0)
    del checkpoint.optimizer["exp_avg/sos"]
    with pytest.raises(DataCorrupt, match="exp_avg/sos"):
        restore(checkpoint, other.model, other.optimizer)
    checkpoint = checkpoint_of(trained(0))
    checkpoint.weights["sos"] = torch.zeros(17)
    with pytest.raises(DataCorrupt, match="does not fit the model"):
        restore(checkpoint, other.model, other.optimizer)


def test_only_sealed_folders_are_listed_in_order(store: Store) -> None:
    save(store, 20, attempt=2)
    save(store, 3, attempt=1)
    save(store, 20, attempt=1)
    store.put("step-000000030/attempt-1/model.safetensors", b"unfinished")
    store.put("step-000000040/COMMITTED", b"in no attempt")
    store.put("notes.txt", b"")
    assert list_committed(store) == refs((3, 1), (20, 1), (20, 2))


def test_pruning_keeps_the_newest_and_the_milestones(store: Store) -> None:
    for step in (3, 5, 8, 13):
        save(store, step)
    dropped = prune(store, list_committed(store), attempt=1, keep=2, milestones={3, 7})
    assert dropped == refs((5, 1))
    assert list_committed(store) == refs((3, 1), (8, 1), (13, 1))
    assert not store.objects("step-000000005")


def test_pruning_keeps_what_is_pinned_as_long_as_it_is_needed(store: Store) -> None:
    for step in (3, 5, 8, 13):
        save(store, step)
    for step, holder in ((3, "done"), (3, "probe"), (5, "done")):
        assert pin(store.sub(f"step-{step:09d}/attempt-1"), holder)
    for needed, dropped, left in (("probe", (5, 8), (3, 13)), ("", (3,), (13,))):
        pruned = prune(
            store,
            list_committed(store),
            attempt=1,
            keep=1,
            milestones=(),
            needs=lambda holder, needed=needed: holder == needed,  # type: ignore[misc]
        )
        assert pruned == refs(*((step, 1) for step in dropped))
        assert list_committed(store) == refs(*((step, 1) for step in left))
        pins = [info.key for info in store.objects() if "/pins/" in info.key]
        assert pins == ([f"step-000000003/attempt-1/pins/{needed}"] if needed else [])


@dataclass(frozen=True)
class Watched:
    """A real store; it tells what it is asked to list and to delete."""

    inner: Store
    lists: list[str]
    deletes: Callable[[Store, Sequence[str]], None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def sub(self, prefix: str) -> "Watched":
        return replace(self, inner=self.inner.sub(prefix))

    def objects(self, prefix: str = "") -> list[ObjectInfo]:
        self.lists.append(prefix)
        return self.inner.objects(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        self.deletes(self.inner, keys)
        self.inner.delete(keys)


def test_a_checkpoint_that_is_pinned_while_it_is_dropped_stays_whole(store: Store) -> None:
    save(store, 3)
    save(store, 5)
    pinned: list[bool] = []

    def at_the_last_moment(folder: Store, keys: Sequence[str]) -> None:
        if list(keys) == ["COMMITTED"]:
            pinned.append(pin(folder, "probe"))

    lists: list[str] = []
    watched: Any = Watched(store, lists, at_the_last_moment)
    options: dict[str, Any] = {"attempt": 1, "keep": 1, "milestones": ()}
    assert prune(watched, list_committed(store), **options) == []
    assert pinned == [True]
    assert load_checkpoint(store, CheckpointRef(3, 1)).step == 3
    store.delete(["step-000000003/attempt-1/pins/probe"])
    lists.clear()
    unwatched: Any = Watched(store, lists, lambda folder, keys: None)
    assert prune(unwatched, list_committed(store), **options) == refs((3, 1))
    assert lists == ["", "pins/"]  # all that it costs where nothing is pinned
    assert not pin(store.sub("step-000000003/attempt-1"), "late")
    assert not store.objects("step-000000003")


def test_pruning_clears_what_older_attempts_left_behind(store: Store) -> None:
    save(store, 10, attempt=1)
    save(store, 30, attempt=1)  # behind the back of attempt 2, which began at 10
    save(store, 20, attempt=2)
    for attempt in (1, 2, 3):
        store.put(f"step-000000040/attempt-{attempt}/model.safetensors", b"unfinished")
    prune(store, refs((10, 1), (20, 2)), attempt=2, keep=2, milestones=())
    assert list_committed(store) == refs((10, 1), (20, 2))
    rest = {info.key for info in store.objects("step-000000040")}
    assert rest == {f"step-000000040/attempt-{attempt}/model.safetensors" for attempt in (2, 3)}


@pytest.fixture
def writer(store: Store) -> Iterator[CheckpointWriter]:
    with CheckpointWriter(
        store,
        attempt=1,
        keep=2,
        milestones=(),
        superseded=lambda: False,
        counting=lambda: list_committed(store),
    ) as writer:
        yield writer


def landed(writer: CheckpointWriter) -> list[Written]:
    """What has been written, once nothing is being written any more."""
    assert writer.settle(60.0)
    return writer.take()


@pytest.mark.parametrize("started_from_it", [False, True])
def test_what_is_committed_as_a_newer_attempt_begins_is_taken_back_unless_it_starts_there(
    store: Store, started_from_it: bool
) -> None:
    answers = iter([False, True])  # the newer attempt claims between the question and the commit
    with CheckpointWriter(
        store,
        attempt=1,
        keep=1,
        milestones=(),
        superseded=lambda: next(answers),
        counting=lambda: refs((2, 1)) if started_from_it else [],
    ) as writer:
        writer.start(checkpoint_of(trained(0), 2))
        (written,) = landed(writer)
    assert written.committed is started_from_it
    assert list_committed(store) == (refs((2, 1)) if started_from_it else [])


def test_the_writer_writes_one_after_the_other_and_reports_each(
    store: Store, writer: CheckpointWriter
) -> None:
    for step in (1, 2, 3):
        writer.start(checkpoint_of(trained(0), step))
    done = landed(writer)
    assert [written.ref.step for written in done] == [1, 2, 3]
    assert landed(writer) == []
    assert list_committed(store) == refs((2, 1), (3, 1))


def test_a_failure_in_the_background_shows(store: Store, writer: CheckpointWriter) -> None:
    broken = Checkpoint(1, {}, {}, {"not": {"json"}})
    writer.start(broken)
    writer.start(checkpoint_of(trained(0), 2))  # is not even begun
    with pytest.raises(TypeError):
        landed(writer)
    assert list_committed(store) == []
