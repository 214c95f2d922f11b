"""What a store in a directory promises beyond the contract: whole files, tidy folders, errors."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from igpt.errors import NotFound, Unreachable, UserError
from igpt.storage import Store, check_writable, open_store
from igpt.storage.directory import DirectoryStore
from igpt.storage.files import TEMPORARY, explained, reserve, write_file
from tests.support.file_systems import removable


def root(store: Store) -> Path:
    return Path(store.uri)


def test_writes_in_progress_are_invisible_and_their_names_are_taken(store: Store) -> None:
    store.put("folder/object", b"1")
    (root(store) / "folder" / f"{TEMPORARY}1").write_bytes(b"half")
    (root(store) / "other").mkdir()
    (root(store) / "other" / f"{TEMPORARY}2").write_bytes(b"half")
    assert [item.key for item in store.objects()] == ["folder/object"]
    assert store.children() == ["folder"]
    assert store.children("folder") == ["object"]
    with pytest.raises(ValueError, match="are taken"):
        store.get(f"folder/{TEMPORARY}1")


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
def test_a_store_in_use_whose_file_system_is_not_mounted_is_away(
    tmp_path: Path, empty: bool
) -> None:
    with removable(tmp_path / "mounted") as mounted:
        DirectoryStore(mounted.folder).put("runs/a/spec.yaml", b"1")
        record = open_store(str(mounted.folder), in_use=True).sub("runs/a")
        assert record.get("spec.yaml") == b"1"
        mounted.leave(empty=empty)
        for action in (
            lambda: record.get("spec.yaml"),
            lambda: record.exists("spec.yaml"),
            lambda: record.objects(),
            lambda: record.children(),
            lambda: record.put("result.json", b"2"),
            lambda: record.create("result.json", b"2"),
            lambda: record.upload("result.json", Path(__file__)),
            lambda: record.delete(["spec.yaml"]),
        ):
            with pytest.raises(Unreachable, match=r"nothing in .*mounted"):
                action()
        mounted.come_back()
        assert record.children() == ["spec.yaml"]


def test_a_store_in_use_that_was_never_seen_is_away(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="nothing in"):
        open_store(str(tmp_path / "store"), in_use=True).get("a")


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
def test_a_store_in_use_that_was_deleted_is_not_away(tmp_path: Path, empty: bool) -> None:
    folder = tmp_path / "store"
    DirectoryStore(folder).put("a", b"1")
    store = open_store(str(folder), in_use=True)
    assert store.exists("a")
    shutil.rmtree(folder)
    if empty:
        folder.mkdir()
    assert not store.exists("a")


def test_a_writer_that_is_killed_leaves_no_object(store: Store) -> None:
    folder = root(store) / "checkpoints"
    program = (
        "import sys; from pathlib import Path; from igpt.storage.files import write_file\n"
        "def fill(file):\n"
        "    file.write(b'half'); file.flush(); print('written', flush=True); sys.stdin.read()\n"
        "write_file(Path(sys.argv[1]), fill)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder / "model")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert store.objects() == []
    assert store.children() == []
    with pytest.raises(NotFound):
        store.get("checkpoints/model")
    assert len(list(folder.iterdir())) == 1


def test_what_killed_writers_left_goes_with_the_objects_around_it(store: Store) -> None:
    store.put("run/a", b"")
    store.put("run/deep/b", b"")
    old, fresh = (root(store) / "run" / "deep" / f"{TEMPORARY}{n}" for n in ("old", "fresh"))
    for path in (old, fresh):
        path.write_bytes(b"half")
    two_days_ago = time.time() - 48 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    store.delete(["run/a", "run/deep/b"])
    assert not old.exists()
    assert fresh.exists()  # its writer may be alive
    os.utime(fresh, (two_days_ago, two_days_ago))
    store.put("run/c", b"")
    store.delete(["run/c"])
    assert list(root(store).iterdir()) == []


def test_folders_go_with_their_last_object_up_to_the_root(store: Store) -> None:
    store.put("runs/a/events/1", b"")
    store.put("runs/a/events/2", b"")
    store.put("index/a", b"")
    store.sub("runs/a/events").delete(["1"])
    assert (root(store) / "runs/a/events").is_dir()
    store.sub("runs/a/events").delete(["2"])
    assert [path.name for path in root(store).iterdir()] == ["index"]
    store.delete(["index/a"])
    assert root(store).is_dir()


def test_writers_and_tidiers_of_one_folder_do_not_disturb_each_other(store: Store) -> None:
    failures: list[BaseException] = []

    def write_and_delete(name: str) -> None:
        try:
            for number in range(100):
                key = f"a/b/c/{name}-{number}"
                assert store.create(key, b"1")
                assert store.get(key) == b"1"
                store.delete([key])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write_and_delete, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(root(store).iterdir()) == []


def test_a_link_whose_success_was_not_told_still_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_over_nfs(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "asked twice")

    monkeypatch.setattr(os, "link", link_over_nfs)
    assert store.create("claim", b"mine")
    assert store.get("claim") == b"mine"


def test_a_file_system_without_links_is_named_as_the_reason(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(UserError, match="has no hard links"):
        check_writable(store)


def test_objects_are_as_readable_as_the_user_wants_files_to_be(store: Store) -> None:
    before = os.umask(0o027)
    try:
        store.put("a", b"")
    finally:
        os.umask(before)
    assert (root(store) / "a").stat().st_mode & 0o777 == 0o640


def test_a_folder_elsewhere_may_be_linked_in(store: Store, tmp_path: Path) -> None:
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "big-disk" / "index.json").write_bytes(b"{}")
    store.put("a", b"")
    (root(store) / "data").symlink_to(tmp_path / "big-disk")
    assert [item.key for item in store.objects()] == ["a", "data/index.json"]
    assert store.children("data") == ["index.json"]


@pytest.mark.parametrize("use", ["put", "create", "upload", "check"])
def test_a_directory_that_cannot_be_written_is_the_users_mistake(use: str, tmp_path: Path) -> None:
    # Below a file nobody can write, root included.
    file = tmp_path / "file"
    file.write_bytes(b"")
    store = open_store(str(file / "store"))
    uses = {
        "put": lambda: store.put("a", b""),
        "create": lambda: store.create("a", b""),
        "upload": lambda: store.upload("a", file),
        "check": lambda: check_writable(store),
    }
    with pytest.raises(UserError, match="cannot be written") as caught:
        uses[use]()
    assert str(file / "store") in str(caught.value)
    assert caught.value.mend
    assert caught.value.exit_code == 2
    assert store.objects() == []
    with pytest.raises(NotFound):
        store.get("a")


def test_downloading_to_where_nothing_can_be_written_is_the_users_mistake(
    store: Store, tmp_path: Path
) -> None:
    store.put("a", b"1")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        store.download("a", tmp_path / "file" / "below")


def test_an_object_where_a_folder_is_needed_is_said_so(store: Store) -> None:
    store.put("a", b"")
    store.put("b/c", b"")
    with pytest.raises(UserError, match="A file stands where a folder is needed"):
        store.put("a/b", b"")
    with pytest.raises(UserError, match="A folder stands where a file is needed"):
        store.put("b", b"")
    assert [item.key for item in store.objects()] == ["a", "b/c"]


def test_a_full_disk_leaves_the_old_object_and_nothing_else(store: Store) -> None:
    store.put("model", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # no file may grow beyond
    try:
        with pytest.raises(UserError, match="model cannot be written: File too large"):
            store.put("model", bytes(1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.get("model") == b"old"
    assert [path.name for path in root(store).iterdir()] == ["model"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_is_reported_with_what_to_do() -> None:
    path = Path("/dev/full")
    with (
        pytest.raises(Unreachable, match=r"/dev/full cannot be written: No space left on device.*"),
        explained("written", path),
        path.open("wb", buffering=0) as file,
    ):
        file.write(b"1")


def test_space_is_taken_where_that_can_be_and_nothing_is_said_where_not(tmp_path: Path) -> None:
    for size in (0, 1 << 20):  # of an empty file the system says that its length cannot be
        path = tmp_path / str(size)
        path.touch()
        os.truncate(path, size)
        reserve(path)
        assert path.stat().st_size == size
        assert path.stat().st_blocks * 512 >= size


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ESHUTDOWN, errno.ENETUNREACH])
def test_a_file_system_that_has_gone_away_is_unreachable(store: Store, number: int) -> None:
    with (
        pytest.raises(Unreachable, match="its server answers") as caught,
        explained("read", root(store)),
    ):
        raise OSError(number, "away")
    assert caught.value.exit_code == 3


def test_a_failure_inside_a_write_passes_and_leaves_nothing(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise NotFound("there is no such object")

    with pytest.raises(NotFound):
        write_file(tmp_path / "folder" / "file", fail)
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_store_in_which_two_writers_may_create_one_object_is_refused(tmp_path: Path) -> None:
    class Careless(DirectoryStore):
        def create(self, key: str, data: bytes) -> bool:
            self.put(key, data)
            return True

    with pytest.raises(Unreachable, match="exists already"):
        check_writable(Careless(tmp_path))
    assert list(tmp_path.glob("igpt-check*")) == []
