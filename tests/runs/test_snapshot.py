"""The code snapshot: what is shipped, what is refused, and that it arrives whole or not at all."""

import gzip
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.runs import archive, snapshot
from igpt.runs.archive import EXECUTABLE, LINK, PLAIN, File, digest_of, files_in, in_order, pack
from igpt.runs.checkout import Listing
from igpt.runs.snapshot import Snapshot, publish, take, unpack
from igpt.storage import Store, open_store

COMMITTED = {
    ".gitignore": "*.log\n/igpt-store/\n__pycache__/\n",
    "igpt/__init__.py": "VALUE = 1\n",
    "igpt/model.py": "layers = 2\n",
    "jobs/pretrain.yaml": "steps: 10\n",
}


def git(folder: Path, *arguments: str) -> str:
    settings = ("user.name=a", "user.email=a@example.org", "protocol.file.allow=always")
    options = [word for setting in settings for word in ("-c", setting)]
    return subprocess.run(
        ["git", *options, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def commit(folder: Path, files: dict[str, str]) -> None:
    write(folder, files)
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "as it should be")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with everything committed."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    commit(folder, COMMITTED)
    return folder


@pytest.fixture(params=["directory", "s3"])
def any_store(request: pytest.FixtureRequest) -> Store:
    if request.param == "s3":
        return open_store(f"{request.getfixturevalue('s3_bucket')}/below")
    store: Store = request.getfixturevalue("store")
    return store


def contents(folder: Path) -> dict[str, str]:
    """What a snapshot of the checkout holds."""
    return {file.path: file.content.decode() for file in take(folder / "igpt")[1]}


def published(store: Store, tree: Path) -> str:
    """The digest of a snapshot that is in the store."""
    taken, files = take(tree / "igpt")
    publish(store, taken, files)
    assert taken.digest is not None
    return taken.digest


# What is shipped


def test_a_clean_checkout_is_its_commit(tree: Path) -> None:
    taken, files = take(tree / "igpt")
    assert {file.path: file.content.decode() for file in files} == COMMITTED
    assert taken.commit == git(tree, "rev-parse", "HEAD").strip()
    assert (taken.changed, taken.untracked) == ((), ())
    assert (taken.files, taken.bytes) == (4, sum(map(len, COMMITTED.values())))


def test_the_working_tree_is_shipped_and_what_differs_is_named(tree: Path) -> None:
    write(tree, {"igpt/__init__.py": "VALUE = 2\n", "new.py": "", "staged.py": ""})
    git(tree, "add", "staged.py")
    (tree / "igpt/model.py").unlink()
    (tree / "jobs/pretrain.yaml").chmod(0o755)
    write(tree, {"noise.log": "", "igpt-store/runs/x": "", "igpt/__pycache__/model.pyc": ""})
    taken, files = take(tree / "igpt")
    assert [file.path for file in files] == [
        ".gitignore",
        "igpt/__init__.py",
        "jobs/pretrain.yaml",
        "new.py",
        "staged.py",
    ]
    assert files[1].content == b"VALUE = 2\n"
    assert taken.changed == ("igpt/__init__.py", "igpt/model.py", "jobs/pretrain.yaml", "staged.py")
    assert taken.untracked == ("new.py",)


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_a_change_that_git_was_told_to_overlook_is_named(tree: Path, flag: str) -> None:
    git(tree, "update-index", flag, "igpt/model.py", "igpt/__init__.py")
    write(tree, {"igpt/model.py": "layers = 3\n"})
    taken, _ = take(tree / "igpt")
    assert taken.changed == ("igpt/model.py",)


def test_a_repository_without_a_commit_is_shipped(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    write(tmp_path, COMMITTED | {"noise.log": ""})
    shutil.rmtree(tmp_path / "home")
    taken, files = take(tmp_path / "igpt")
    assert [file.path for file in files] == sorted(COMMITTED)
    assert (taken.commit, taken.untracked) == (None, tuple(sorted(COMMITTED)))


def test_bytecode_is_never_shipped(tree: Path) -> None:
    (tree / ".gitignore").write_text("")
    write(tree, {"igpt/__pycache__/model.cpython-311.pyc": "stale"})
    assert set(contents(tree)) == set(COMMITTED)


def test_of_a_larger_repository_only_the_folder_of_the_package_is_shipped(tree: Path) -> None:
    commit(tree, {"tools/jobs/igpt/__init__.py": "", "tools/jobs/igpt/old.py": "", "b.py": ""})
    write(tree, {"tools/jobs/new.py": "", "tools/jobs/igpt/old.py": "x"})
    taken, files = take(tree / "tools/jobs/igpt")
    assert [file.path for file in files] == ["igpt/__init__.py", "igpt/old.py", "new.py"]
    assert (taken.changed, taken.untracked) == (("igpt/old.py",), ("new.py",))


def test_settings_and_variables_of_the_user_change_nothing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tree, {"ä b.py": "", "igpt/model.py": "layers = 3\n"})
    git(tree, "mv", "jobs/pretrain.yaml", "jobs/renamed.yaml")
    before = take(tree / "igpt")
    assert before[0].changed == ("igpt/model.py", "jobs/pretrain.yaml", "jobs/renamed.yaml")
    other = tmp_path / "other"
    other.mkdir()
    commit(other, {"elsewhere.py": ""})
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    hook.chmod(0o755)
    for setting in (
        "core.quotepath=true",
        "color.ui=always",
        "status.showUntrackedFiles=no",
        "status.renames=copies",
        "status.branch=true",
        "status.short=true",
        "status.showStash=true",
        "status.relativePaths=true",
        "diff.ignoreSubmodules=all",
        f"core.fsmonitor={hook}",
    ):
        git(tree, "config", "--global", *setting.split("=", 1))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert take(tree / "igpt") == before
    assert not (tmp_path / "started").exists()


def test_taking_a_snapshot_leaves_the_repository_alone(tree: Path) -> None:
    os.utime(tree / "igpt/model.py", (1, 1))  # a reason for git to refresh its index
    before = {p: p.stat().st_mtime_ns for p in (tree / ".git").rglob("*")}
    take(tree / "igpt")
    assert {p: p.stat().st_mtime_ns for p in (tree / ".git").rglob("*")} == before


def test_any_name_is_shipped_and_the_record_can_hold_it(tree: Path, store: Store) -> None:
    names = [b"line\nbreak.py", b"quote\"'.py", b"\xff\xfe.py", "ä.py".encode(), b"-rf", b" "]
    for name in names:
        with open(os.path.join(os.fsencode(tree), name), "wb") as file:
            file.write(b"x = 1\n")
    taken, files = take(tree / "igpt")
    publish(store, taken, files)
    assert len(taken.untracked) == len(names)
    assert json.loads(json.dumps(asdict(taken), ensure_ascii=False).encode()) is not None
    assert all(name.isprintable() for name in taken.untracked)
    arrived = unpack(store, str(taken.digest), tree.parent / "code")
    assert set(names) <= set(os.listdir(os.fsencode(arrived)))


def test_the_files_of_submodules_are_shipped(tree: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    commit(library, {"code.py": "x = 1\n", "other.py": ""})
    git(tree, "submodule", "--quiet", "add", str(library), "lib/inner")
    git(tree, "commit", "--quiet", "--message", "with a library")
    write(tree, {"lib/inner/code.py": "x = 2\n", "lib/inner/more.py": ""})
    taken, files = take(tree / "igpt")
    assert {f.path for f in files} >= {"lib/inner/code.py", "lib/inner/other.py", ".gitmodules"}
    assert not any(".git" in file.path.split("/") for file in files)
    assert taken.changed == ("lib/inner/code.py",)
    assert taken.untracked == ("lib/inner/more.py",)
    git(tree / "lib/inner", "commit", "--quiet", "--all", "--message", "moved on")
    assert take(tree / "igpt")[0].changed == ("lib/inner",)


def test_a_submodule_that_is_not_checked_out_has_no_files(tree: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    commit(library, {"code.py": ""})
    git(tree, "submodule", "--quiet", "add", str(library), "lib")
    git(tree, "commit", "--quiet", "--message", "with a library")
    git(tmp_path, "clone", "--quiet", str(tree), "clone")
    taken, files = take(tmp_path / "clone/igpt")
    assert {file.path for file in files} == {*COMMITTED, ".gitmodules"}
    assert taken.changed == ()


def test_a_linked_worktree_is_a_checkout_like_any_other(tree: Path, tmp_path: Path) -> None:
    git(tree, "worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
    assert take(tmp_path / "linked/igpt") == take(tree / "igpt")


def test_links_that_stay_inside_are_kept(tree: Path, store: Store) -> None:
    (tree / "jobs/link.yaml").symlink_to("pretrain.yaml")
    (tree / "igpt/recipes").symlink_to("../jobs")
    arrived = unpack(store, published(store, tree), tree.parent / "code")
    assert os.readlink(arrived / "igpt/recipes") == "../jobs"
    assert (arrived / "igpt/recipes/link.yaml").read_text() == COMMITTED["jobs/pretrain.yaml"]


def test_what_lies_behind_a_link_is_not_followed(tree: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"pretrain.yaml": "private"})
    shutil.rmtree(tree / "jobs")
    (tree / "jobs").symlink_to("../elsewhere")
    with pytest.raises(UserError, match=r"jobs in .* leads out"):
        take(tree / "igpt")
    write(tree, {".gitignore": "/jobs\n"})
    taken, files = take(tree / "igpt")
    assert {file.path for file in files} == {*COMMITTED} - {"jobs/pretrain.yaml"}
    assert taken.changed == (".gitignore", "jobs/pretrain.yaml")


def test_a_file_that_goes_while_the_tree_is_read_is_a_deleted_one(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tree, {"brief.py": ""})
    listed = snapshot.list_files

    def then_delete(root: Path, package: str) -> Listing:
        listing = listed(root, package)
        (tree / "brief.py").unlink()
        shutil.rmtree(tree / "jobs")
        return listing

    monkeypatch.setattr(snapshot, "list_files", then_delete)
    taken, files = take(tree / "igpt")
    assert len(files) == 3
    assert (taken.changed, taken.untracked) == (("jobs/pretrain.yaml",), ())


def test_half_written_files_are_never_shipped(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.fstat

    def status_and_a_write(descriptor: int) -> os.stat_result:
        found = status(descriptor)
        with (tree / "igpt/model.py").open("a") as file:
            file.write("#")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(archive.os, "fstat", status_and_a_write)
        with pytest.raises(UserError, match=r"model\.py is written to while it is read"):
            archive.read_file(tree, "igpt/model.py")


def test_a_later_change_of_the_tree_changes_nothing(tree: Path, store: Store) -> None:
    taken, files = take(tree / "igpt")
    write(tree, {"igpt/__init__.py": "VALUE = 2\n", "igpt/late.py": ""})
    publish(store, taken, files)
    arrived = unpack(store, str(taken.digest), tree.parent / "code")
    shutil.rmtree(tree)
    environment = {**os.environ, "PYTHONPATH": str(arrived)}
    program = "import igpt; print(igpt.VALUE, igpt.__file__)"
    answer = subprocess.run(
        [sys.executable, "-P", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    assert answer.split() == ["1", str(arrived / "igpt/__init__.py")]
    assert not (arrived / "igpt/late.py").exists()


# What is refused


def test_a_large_untracked_file_is_refused_by_name(tree: Path) -> None:
    for name, size in (("small.bin", 9_000_000), ("large.bin", 12_000_000), ("huge.bin", 1 << 40)):
        with (tree / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(UserError, match=r"huge\.bin \(1099511\.6 MB\), large\.bin \(12\.0 MB\) in"):
        take(tree / "igpt")
    (tree / "huge.bin").unlink()
    git(tree, "add", "large.bin")  # on purpose, then
    assert take(tree / "igpt")[0].bytes > 21_000_000


@pytest.mark.parametrize("limit", ["TOTAL_LIMIT", "FILES_LIMIT"])
def test_too_much_in_all_is_refused_and_the_largest_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(snapshot, limit, 3)
    with pytest.raises(
        UserError, match=r"4 files .* to ship; the largest are \.gitignore"
    ) as error:
        take(tree / "igpt")
    assert ".gitignore" in error.value.mend


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        "conf/.env.local",
        "server.PEM",
        "id_rsa",
        "credentials",
        ".aws/config",
        "secrets.yml",
    ],
)
def test_untracked_credentials_are_refused(tree: Path, name: str) -> None:
    write(tree, {name: "x"})
    with pytest.raises(UserError, match="cannot be shipped: what looks like credentials") as error:
        take(tree / "igpt")
    assert name in error.value.what
    git(tree, "add", "--all")
    assert name in contents(tree)  # git has it, so it is no secret


def test_a_private_key_is_refused_under_any_name(tree: Path) -> None:
    write(tree, {"notes.txt": "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n"})
    with pytest.raises(UserError, match=r"notes\.txt in .* cannot be shipped: a private key"):
        take(tree / "igpt")


@pytest.mark.parametrize("name", [".env.example", "credentials.py", "secrets.py", "id_rsa.pub"])
def test_code_about_credentials_is_shipped(tree: Path, name: str) -> None:
    write(tree, {name: "x"})
    assert name in contents(tree)


def test_another_repository_inside_is_refused(tree: Path) -> None:
    (tree / "cloned").mkdir()
    commit(tree / "cloned", {"code.py": ""})
    with pytest.raises(UserError, match=r"cloned/ in .* another git repository"):
        take(tree / "igpt")
    shutil.rmtree(tree / "cloned")
    git(tree, "worktree", "add", "--quiet", "--detach", "linked")
    with pytest.raises(UserError, match=r"linked/ in .* another git repository"):
        take(tree / "igpt")


@pytest.mark.parametrize("target", ["/etc/passwd", "../..", "../igpt/../../x", "./../../x"])
def test_links_that_lead_out_are_refused(tree: Path, target: str) -> None:
    (tree / "jobs/out").symlink_to(target)
    with pytest.raises(UserError, match=r"jobs/out in .* a link that leads out"):
        take(tree / "igpt")


def test_what_is_no_file_is_refused(tree: Path) -> None:
    (tree / "igpt/model.py").unlink()
    os.mkfifo(tree / "igpt/model.py")
    with pytest.raises(UserError, match=r"model\.py cannot be shipped"):
        take(tree / "igpt")


def test_a_package_that_git_ignores_is_refused(tree: Path) -> None:
    git(tree, "rm", "--quiet", "-r", "--cached", "igpt")
    write(tree, {".gitignore": "/igpt/\n"})
    with pytest.raises(UserError, match="igpt would not be shipped"):
        take(tree / "igpt")


# Trees and packages without git


def test_a_tree_without_git_is_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "unpacked"
    write(folder, COMMITTED | {"igpt/__pycache__/x.pyc": "", ".venv/bin/python": "", ".ci/run": ""})
    write(folder, {"igpt-store/runs/x": "", "lib/.git": "gitdir: elsewhere", "lib/code.py": ""})
    monkeypatch.setenv("PATH", "")  # no git is needed
    taken, files = take(folder / "igpt")
    assert {file.path for file in files} == {*COMMITTED, ".ci/run", "lib/code.py"}
    assert (taken.commit, taken.changed, taken.untracked) == (None, (), ())
    write(folder, {".env": "x"})
    with pytest.raises(UserError, match=r"\.env .* Move it elsewhere"):
        take(folder / "igpt")


def test_a_snapshot_of_what_was_unpacked_is_the_same_snapshot(tree: Path, store: Store) -> None:
    digest = published(store, tree)
    arrived = unpack(store, digest, tree.parent / "code")
    assert take(arrived / "igpt")[0].digest == digest


def test_a_repository_further_up_that_does_not_have_the_tree_has_no_say(tmp_path: Path) -> None:
    write(tmp_path, {".gitignore": "*\n", "dotfile": ""})
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--force", "dotfile")
    write(tmp_path, {f"source/{path}": text for path, text in COMMITTED.items()})
    taken, files = take(tmp_path / "source/igpt")
    assert {file.path for file in files} == set(COMMITTED)
    assert taken.commit is None


def test_of_a_wheel_the_version_is_recorded(tree: Path) -> None:
    packages = tree / ".venv/lib/site-packages"  # git, around it, has no say
    about = {"igpt_jobs-0.7.1.dist-info/METADATA": "Name: igpt-jobs\nVersion: 0.7.1\n"}
    write(packages, {"igpt/__init__.py": ""} | about)
    taken, files = take(packages / "igpt")
    assert (taken, files) == (Snapshot("0.7.1", None, None), ())
    assert taken.described() == "igpt-jobs 0.7.1, as installed"
    origin = {"url": "https://example.org/igpt.git", "vcs_info": {"commit_id": "1a2b3c4d5e6f"}}
    write(packages, {"igpt_jobs-0.7.1.dist-info/direct_url.json": json.dumps(origin)})
    described = take(packages / "igpt")[0].described()
    assert described == "igpt-jobs 0.7.1 from commit 1a2b3c4, as installed"


def test_of_a_wheel_nothing_is_published(store: Store) -> None:
    publish(store, Snapshot("0.7.1", None, None), ())
    assert store.objects() == []


def test_a_checkout_without_git_installed_is_an_error(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="there is no git on PATH"):
        take(tree / "igpt")


def test_a_checkout_of_another_owner_is_an_error_that_says_what_to_do(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own way to pretend
    with pytest.raises(UserError, match=r"dubious ownership .* --add safe\.directory"):
        take(tree / "igpt")


def test_a_broken_repository_is_an_error(tree: Path) -> None:
    (tree / ".git/HEAD").unlink()
    with pytest.raises(UserError, match="git cannot tell what is in"):
        take(tree / "igpt")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"changed": ("a", "b"), "untracked": ("c",)}, "commit 1a2b3c4 + 2 changed, 1 untracked"),
        ({"files": 214, "bytes": 1_240_000}, "commit 1a2b3c4; 214 files, 1.2 MB"),
        ({"commit": None, "files": 1, "bytes": 2_000}, "no commit; 1 file, 2 kB"),
    ],
)
def test_the_line_for_people(values: dict[str, object], line: str) -> None:
    described = replace(Snapshot("0.1.0", "0" * 64, "1a2b3c4d5e"), **values).described()  # type: ignore[arg-type]
    assert described.startswith(line)


# The digest and the archive

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
FILES = st.builds(
    File,
    st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map(
        "/".join
    ),
    st.sampled_from([PLAIN, EXECUTABLE]),
    st.binary(max_size=20),
)


SETS = st.lists(FILES, max_size=4, unique_by=lambda file: file.path)


@given(SETS, SETS, st.randoms())
def test_the_digest_is_of_path_mode_and_content_and_nothing_else(
    some: list[File], others: list[File], random: Random
) -> None:
    shuffled = random.sample(some, len(some))
    assert digest_of(in_order(shuffled)) == digest_of(in_order(some))
    assert (digest_of(in_order(some)) == digest_of(in_order(others))) == (
        in_order(some) == in_order(others)
    )


@given(st.dictionaries(NAMES.filter(lambda name: name not in (".", "..")), FILES, max_size=4))
def test_an_archive_is_a_function_of_its_files_and_gives_them_back(named: dict[str, File]) -> None:
    files = in_order(replace(file, path=name) for name, file in named.items())
    assert pack(files) == pack(files)
    assert pack(files)[4:8] == bytes(4)  # the time in the header of gzip
    assert files_in(pack(files), digest_of(files), "it") == files


def test_each_of_path_mode_and_content_changes_the_digest(tree: Path) -> None:
    digests = {take(tree / "igpt")[0].digest}
    os.utime(tree / "igpt/model.py", (1, 1))
    (tree / "igpt/model.py").chmod(0o600)
    assert take(tree / "igpt")[0].digest in digests
    (tree / "igpt/model.py").chmod(0o700)
    digests.add(take(tree / "igpt")[0].digest)
    (tree / "igpt/model.py").write_text("layers = 3\n")
    digests.add(take(tree / "igpt")[0].digest)
    (tree / "igpt/model.py").rename(tree / "igpt/network.py")
    digests.add(take(tree / "igpt")[0].digest)
    assert len(digests) == 4


# The store, and unpacking


def test_a_snapshot_arrives_as_it_was_taken(tree: Path, any_store: Store, tmp_path: Path) -> None:
    write(tree, {"run.sh": "#!/bin/sh\n", "deep/er/x.py": ""})
    (tree / "run.sh").chmod(0o755)
    (tree / "deep/link").symlink_to("er/x.py")
    digest = published(any_store, tree)
    arrived = unpack(any_store, digest, tmp_path / "new" / "code")
    assert arrived == tmp_path / "new" / "code" / digest
    assert archive.holds(arrived, digest)
    rights = {
        path: stat.S_IMODE((arrived / path).stat().st_mode)
        for path in ("run.sh", "igpt/__init__.py")
    }
    assert rights == {"run.sh": 0o555, "igpt/__init__.py": 0o444}  # nobody edits what runs
    assert os.listdir(arrived.parent) == [digest]
    assert [info.key for info in any_store.objects()] == [f"code/{digest}.tar.gz"]


def test_what_the_store_has_is_not_published_again(tree: Path, any_store: Store) -> None:
    taken, files = take(tree / "igpt")
    any_store.put(f"code/{taken.digest}.tar.gz", b"there already")
    publish(any_store, taken, files)
    assert any_store.get(f"code/{taken.digest}.tar.gz") == b"there already"


def test_what_is_unpacked_already_is_used_without_the_store(tree: Path, store: Store) -> None:
    digest = published(store, tree)
    first = unpack(store, digest, tree.parent / "code")
    write(first, {"igpt/__pycache__/model.cpython-311.pyc": "made by running it"})
    store.delete([f"code/{digest}.tar.gz"])
    assert unpack(store, digest, tree.parent / "code") == first


def edit(folder: Path) -> None:
    (folder / "igpt/model.py").unlink()
    (folder / "igpt/model.py").write_text("layers = 99\n")


def purge(folder: Path) -> None:
    shutil.rmtree(folder / "jobs")


def add(folder: Path) -> None:
    (folder / "igpt/torch.py").write_text("")


@pytest.mark.parametrize("meddle", [edit, purge, add])
def test_what_was_changed_after_it_was_unpacked_is_moved_aside(
    tree: Path, store: Store, meddle: Callable[[Path], None]
) -> None:
    digest = published(store, tree)
    arrived = unpack(store, digest, tree.parent / "code")
    meddle(arrived)
    assert unpack(store, digest, tree.parent / "code") == arrived
    assert archive.holds(arrived, digest)
    names = sorted(os.listdir(arrived.parent))
    assert names[0] == digest
    assert names[1].startswith(f"{digest}.changed-")
    assert len(names) == 2


def test_a_snapshot_that_the_store_does_not_have_is_not_found(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        unpack(store, "0" * 64, tmp_path / "code")


@pytest.mark.parametrize("digest", ["", "../../etc", "0" * 63, "A" * 64])
def test_what_is_no_digest_is_refused(store: Store, tmp_path: Path, digest: str) -> None:
    with pytest.raises(DataCorrupt, match="names no code snapshot"):
        unpack(store, digest, tmp_path / "code")


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def empty(data: bytes) -> bytes:
    return b""


def other(data: bytes) -> bytes:
    return pack((File("igpt/__init__.py", PLAIN, b"VALUE = 666\n"),))


@pytest.mark.parametrize("damage", [flip, cut, empty, other])
def test_a_damaged_object_is_named_and_nothing_is_unpacked(
    tree: Path, any_store: Store, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    digest = published(any_store, tree)
    key = f"code/{digest}.tar.gz"
    any_store.put(key, damage(any_store.get(key)))
    with pytest.raises(DataCorrupt, match=f"{key} is damaged") as error:
        unpack(any_store, digest, tmp_path / "code")
    assert "submit again" in error.value.mend
    assert not (tmp_path / "code").exists()


@pytest.mark.parametrize(
    "files",
    [
        [File("../escaped", PLAIN, b"x")],
        [File("a/../../escaped", PLAIN, b"x")],
        [File("/tmp/escaped", PLAIN, b"x")],
        [File("a//b", PLAIN, b"x")],
        [File("link", LINK, b"/etc")],
        [File("link", LINK, b"..")],
        [File("a/link", LINK, b"../../escaped")],
        [File("a", LINK, b"b"), File("b", LINK, b"c/.."), File("c", LINK, b".")],
        [File("a", LINK, b"b"), File("a/written-through", PLAIN, b"x")],
        [File("a", PLAIN, b"x"), File("a", PLAIN, b"x")],
    ],
    ids=lambda files: "+".join(file.path for file in files),
)
def test_a_hostile_archive_writes_nothing(store: Store, tmp_path: Path, files: list[File]) -> None:
    digest = digest_of(in_order(files))  # so that nothing but its members is wrong with it
    store.put(f"code/{digest}.tar.gz", pack(tuple(files)))
    with pytest.raises(DataCorrupt, match="is damaged: "):
        unpack(store, digest, tmp_path / "code")
    assert not (tmp_path / "code").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]
)
def test_only_files_and_links_are_unpacked(store: Store, tmp_path: Path, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("igpt")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    store.put(f"code/{digest_of(())}.tar.gz", gzip.compress(buffer.getvalue()))
    with pytest.raises(DataCorrupt, match="'igpt' is neither a file nor a link"):
        unpack(store, digest_of(()), tmp_path / "code")


def test_a_file_with_holes_is_not_unpacked(store: Store, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("igpt")
        member.size = 1
        member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40)}
        tar.addfile(member, io.BytesIO(b"x"))
    store.put(f"code/{'0' * 64}.tar.gz", gzip.compress(buffer.getvalue()))
    with pytest.raises(DataCorrupt, match="'igpt' is neither a file nor a link"):
        unpack(store, "0" * 64, tmp_path / "code")


def test_an_archive_that_swells_is_not_read_to_its_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "TOTAL_LIMIT", 1000)
    monkeypatch.setattr(archive, "FILES_LIMIT", 1)
    files = (File("zeros", PLAIN, bytes(10_000)),)
    store.put(f"code/{digest_of(files)}.tar.gz", pack(files))
    with pytest.raises(DataCorrupt, match="more than 5096 bytes"):
        unpack(store, digest_of(files), tmp_path / "code")


UNPACK = """
import sys
from pathlib import Path
from igpt.runs.snapshot import unpack
from igpt.storage import open_store
print("ready", flush=True)
sys.stdin.readline()
print(unpack(open_store(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
"""


def start_unpacking(store: Store, digest: str, folder: Path) -> subprocess.Popen[str]:
    """A process that is about to unpack, and does when it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", UNPACK, store.uri, digest, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize("before", ["nothing", "changed"])
def test_many_processes_unpack_one_snapshot_at_once(
    tree: Path, store: Store, tmp_path: Path, before: str
) -> None:
    write(tree, {f"igpt/module{number}.py": "x = 1\n" * 100 for number in range(100)})
    digest = published(store, tree)
    folder = tmp_path / "code"
    if before == "changed":
        edit(unpack(store, digest, folder))
    processes = [start_unpacking(store, digest, folder) for _ in range(4)]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        answers = {process.communicate()[0].strip() for process in processes}
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert answers == {str(folder / digest)}
    assert archive.holds(folder / digest, digest)
    left = [name for name in os.listdir(folder) if name != digest]
    assert all(name.startswith(f"{digest}.changed-") for name in left)
    assert bool(left) == (before == "changed")


def test_a_process_killed_while_it_unpacks_leaves_all_or_nothing(
    store: Store, tmp_path: Path
) -> None:
    files = in_order(File(f"igpt/{number}.py", PLAIN, b"x = 1\n") for number in range(3000))
    digest = digest_of(files)
    publish(store, Snapshot("0", digest, None), files)
    folder = tmp_path / "code"
    process = start_unpacking(store, digest, folder)
    try:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        while process.poll() is None and not (folder.is_dir() and os.listdir(folder)):
            pass
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not (folder / digest).exists() or archive.holds(folder / digest, digest)
    assert archive.holds(unpack(store, digest, folder), digest)


def test_the_client_loads_nothing_heavy_for_it() -> None:
    program = (
        "import sys, igpt.runs.snapshot;"
        "assert not {'torch', 'ray', 'boto3', 'numpy', 'submitit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
