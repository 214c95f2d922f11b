"""What every store promises, over a directory and over a real S3 server."""

import multiprocessing
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igpt.errors import NotFound
from igpt.storage import Store, check_key, check_writable, open_store


def test_what_is_put_is_got(any_store: Store) -> None:
    for data in (b"", b"text", bytes(range(256)) * 500):
        any_store.put("a/b.bin", data)
        assert any_store.get("a/b.bin") == data
        assert any_store.exists("a/b.bin")


def test_put_replaces_and_create_does_not(any_store: Store) -> None:
    assert any_store.create("claim", b"first")
    assert not any_store.create("claim", b"second")
    assert any_store.get("claim") == b"first"
    any_store.put("claim", b"third")
    assert any_store.get("claim") == b"third"
    any_store.delete(["claim"])
    assert any_store.create("claim", b"fourth")


def test_what_is_not_there_is_not_found(any_store: Store, tmp_path: Path) -> None:
    any_store.put("folder/object", b"")
    for key in ("nothing", "folder", "folder/object/below", "other/nothing"):
        assert not any_store.exists(key)
        with pytest.raises(NotFound, match=f"{any_store.uri}/{key}"):
            any_store.get(key)
        with pytest.raises(NotFound, match=f"{any_store.uri}/{key}"):
            any_store.download(key, tmp_path / "target" / "file")
    assert not list((tmp_path / "target").glob("*"))


def test_objects_are_listed_in_the_order_of_their_keys(any_store: Store) -> None:
    before = time.time()
    for key in ("b/2", "b/10", "b-c", "a", "B", "b/1/x", "é"):
        any_store.put(key, key.encode())
    found = any_store.objects()
    assert [item.key for item in found] == ["B", "a", "b-c", "b/1/x", "b/10", "b/2", "é"]
    assert [item.size for item in found] == [len(item.key.encode()) for item in found]
    assert all(abs(item.modified - before) < 30 for item in found)


def test_a_prefix_is_the_beginning_of_the_key(any_store: Store) -> None:
    for key in ("run", "run-1/a", "run-1/b/c", "run-2/a"):
        any_store.put(key, b"")
    for prefix, expected in {
        "run": ["run", "run-1/a", "run-1/b/c", "run-2/a"],
        "run-1": ["run-1/a", "run-1/b/c"],
        "run-1/": ["run-1/a", "run-1/b/c"],
        "run-1/b": ["run-1/b/c"],
        "run-1/b/c": ["run-1/b/c"],
        "none": [],
        "none/": [],
        "run/": [],
    }.items():
        assert [item.key for item in any_store.objects(prefix)] == expected


def test_children_are_the_names_one_level_below(any_store: Store) -> None:
    for key in ("runs/b/spec", "runs/b/events/1", "runs/a/spec", "runs/note", "index/x"):
        any_store.put(key, b"")
    assert any_store.children() == ["index", "runs"]
    assert any_store.children("runs") == any_store.children("runs/") == ["a", "b", "note"]
    assert any_store.children("runs/b") == ["events", "spec"]
    assert any_store.children("run") == []
    assert any_store.children("runs/note") == []


def test_a_sub_store_is_the_same_store_seen_from_below(any_store: Store) -> None:
    below = any_store.sub("runs/").sub("a")
    assert below.uri == f"{any_store.uri}/runs/a"
    assert below.create("claim", b"1")
    assert any_store.get("runs/a/claim") == b"1"
    assert [item.key for item in below.objects()] == ["claim"]
    assert below.children() == ["claim"]
    below.delete(["claim"])
    assert any_store.objects() == []


def test_deleting_what_is_missing_is_no_error(any_store: Store) -> None:
    any_store.put("a/b", b"")
    any_store.put("a/c", b"")
    any_store.delete([])
    any_store.delete(["a", "a/b", "a/b/c", "nothing", "no/thing"])
    assert [item.key for item in any_store.objects()] == ["a/c"]


def test_files_come_back_as_they_went(any_store: Store, tmp_path: Path) -> None:
    # 17 MiB and a bit: in two parts over S3
    data = b"".join(number.to_bytes(4, "big") for number in range((17 << 18) + 3))
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(data)
    any_store.upload("checkpoint/model", source)
    any_store.download("checkpoint/model", target)
    assert target.read_bytes() == data
    source.write_bytes(b"")
    any_store.upload("checkpoint/model", source)
    any_store.download("checkpoint/model", target)
    assert target.read_bytes() == any_store.get("checkpoint/model") == b""
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_uploading_a_file_that_is_not_there_stores_nothing(
    any_store: Store, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        any_store.upload("a", tmp_path / "nothing")
    assert not any_store.exists("a")


@pytest.mark.parametrize("uri", ["store", "s3://bucket", "s3://bucket/prefix"])
@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\0b"])
def test_keys_that_are_none_are_refused_by_every_method(uri: str, key: str, tmp_path: Path) -> None:
    # before a server is asked: there is none
    store = open_store(uri if "://" in uri else str(tmp_path / uri))
    file = tmp_path / "file"
    file.write_bytes(b"")
    for use in (
        lambda: store.get(key),
        lambda: store.put(key, b""),
        lambda: store.create(key, b""),
        lambda: store.upload(key, file),
        lambda: store.download(key, tmp_path / "target"),
        lambda: store.exists(key),
        lambda: store.delete([key]),
        lambda: store.local_path(key),
        lambda: store.sub(f"/{key}"),
        lambda: store.objects(f"/{key}"),
        lambda: store.children(f"/{key}"),
    ):
        with pytest.raises(ValueError, match="is not a key"):
            use()


def test_a_thousand_and_more_are_listed_and_deleted(any_store: Store) -> None:
    keys = [f"many/{number:04}" for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: any_store.put(key, b""), keys))
    assert [item.key for item in any_store.objects()] == keys
    assert any_store.children("many") == [key.removeprefix("many/") for key in keys]
    any_store.delete([*keys[1:], "never/there"])
    assert [item.key for item in any_store.objects()] == keys[:1]


def create_each(store: Store, keys: list[str], writer: str) -> list[str]:
    """The keys that this process was the one to create."""
    return [key for key in keys if store.create(key, writer.encode())]


def test_of_many_processes_exactly_one_creates_an_object(any_store: Store) -> None:
    keys = [f"attempts/{number}/claim" for number in range(20)]
    writers = ["one", "two", "three"]
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=spawning) as pool:
        wins = list(pool.map(create_each, [any_store] * 3, [keys] * 3, writers))
    won = {key: writer for writer, mine in zip(writers, wins, strict=True) for key in mine}
    assert sorted(key for mine in wins for key in mine) == sorted(keys)
    assert {key: any_store.get(key).decode() for key in keys} == won


def test_a_reader_sees_the_old_object_or_the_new_one(any_store: Store) -> None:
    size = 300_000
    any_store.put("heartbeat", b"0" * size)
    done = threading.Event()

    def write() -> None:
        for number in range(30):
            any_store.put("heartbeat", str(number % 10).encode() * size)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set() or reads == 0:
        data = any_store.get("heartbeat")
        assert len(data) == size
        assert len(set(data)) == 1
        reads += 1
    writer.join()


def test_a_store_can_be_pickled(any_store: Store) -> None:
    any_store.put("a", b"1")
    assert pickle.loads(pickle.dumps(any_store.sub("x"))) == any_store.sub("x")
    assert pickle.loads(pickle.dumps(any_store)).get("a") == b"1"


def test_a_writable_store_passes_the_check_and_is_left_empty(any_store: Store) -> None:
    check_writable(any_store)
    assert any_store.objects() == []


def test_only_a_directory_has_local_paths(any_store: Store) -> None:
    any_store.put("a/b", b"1")
    path = any_store.local_path("a/b")
    assert (path is None) == any_store.uri.startswith("s3://")
    assert path is None or path.read_bytes() == b"1"


names = st.text(st.sampled_from("ab-. +%&=#?é~"), min_size=1, max_size=4).filter(
    lambda name: name not in (".", "..")
)
keys = st.builds("{}/{}".format, st.sampled_from(["x", "x y"]), names)
operations = st.lists(
    st.tuples(st.sampled_from(["put", "create", "delete"]), keys, st.binary(max_size=3)),
    max_size=8,
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=operations)
def test_a_store_is_a_dictionary(
    any_store: Store, operations: list[tuple[str, str, bytes]]
) -> None:
    any_store.delete([item.key for item in any_store.objects()])
    expected: dict[str, bytes] = {}
    for operation, key, data in operations:
        if operation == "put":
            any_store.put(key, data)
            expected[key] = data
        elif operation == "create":
            assert any_store.create(key, data) == (key not in expected)
            expected.setdefault(key, data)
        else:
            any_store.delete([key])
            expected.pop(key, None)
    found = {item.key: any_store.get(item.key) for item in any_store.objects()}
    assert found == expected


@given(st.text(max_size=12))
def test_a_key_that_passes_stays_below_the_root(key: str) -> None:
    try:
        check_key(key)
    except ValueError:
        return
    root = Path("/place/of/store")
    assert root in (root / key).parents
    assert str(root / key) == f"{root}/{key}"
