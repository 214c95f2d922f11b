"""A folder of a store that is there as a whole or not at all: files, a manifest, a seal.

`manifest.json` lists the bytes and sha256 of each file, and `COMMITTED`, written last, holds the
sha256 of the manifest. What carries no seal was never finished and is not read. Checkpoints are
such folders; so are the models that are read back from them.

Who needs a folder that may be dropped pins it, by an empty object `pins/<its name>`: it looks for
the seal after that, and who drops the folder looks for pins after taking the seal off. So one of
the two sees the other, and gives way.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from igpt.config import Strict
from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.storage.base import Store
from igpt.storage.files import explained

MANIFEST = "manifest.json"
SEAL = "COMMITTED"
PINS = "pins/"


class SealedFile(Strict):
    """One file of the folder, as it was written."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # below the folder, never beside it
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Strict):
    """What a sealed folder holds."""

    step: int = Field(ge=0)
    files: tuple[SealedFile, ...]

    def file(self, name: str) -> SealedFile:
        """The entry of `name`. Raises DataCorrupt where there is none."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise DataCorrupt(f"the manifest lists no {name}")


def describe(step: int, files: Mapping[str, Path]) -> Manifest:
    """The manifest of local files, by the names they will have in the folder."""
    entries = (
        SealedFile(name=name, bytes=path.stat().st_size, sha256=sha256_of(path))
        for name, path in files.items()
    )
    return Manifest(step=step, files=tuple(entries))


def seal(store: Store, manifest: Manifest) -> None:
    """Writes the manifest and, last, the seal; the files must be in the store already."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1).encode()
    store.put(MANIFEST, text)
    store.put(SEAL, hashlib.sha256(text).hexdigest().encode())


def pin(store: Store, holder: str) -> bool:
    """Keeps the folder from being dropped while `holder` needs it; False where it has no seal."""
    key = PINS + holder
    store.put(key, b"")
    if store.exists(SEAL):
        return True
    store.delete([key])
    return False


def is_pinned(store: Store, pins: Iterable[str], needs: Callable[[str], bool]) -> bool:
    """Whether one of the folder's `pins`, keys in it, holds; those that do not are removed.

    needs: whether the one of this name still needs the folder.
    """
    held = {key: needs(key.removeprefix(PINS)) for key in pins}
    store.delete([key for key, needed in held.items() if not needed])
    return any(held.values())


def unseal(store: Store, needs: Callable[[str], bool]) -> bool:
    """Takes the seal off a folder that is to be dropped; False where it was pinned meanwhile."""
    content = store.get(SEAL)
    store.delete([SEAL])
    if is_pinned(store, [info.key for info in store.objects(PINS)], needs):
        store.put(SEAL, content)
        return False
    return True


def read_manifest(store: Store) -> Manifest:
    """The manifest, if the folder is sealed and the seal fits it.

    Raises UserError for a folder without a seal and DataCorrupt for a seal that does not fit.
    """
    if not store.exists(SEAL):
        raise UserError(
            f"{store.uri} holds no {SEAL}: it was never finished",
            expected="a committed checkpoint",
        )
    text = store.get(MANIFEST)
    if hashlib.sha256(text).hexdigest().encode() != store.get(SEAL).strip():
        raise DataCorrupt(f"{store.uri}/{MANIFEST} is not the one that was committed")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise DataCorrupt(f"{store.uri}/{MANIFEST} is not a manifest: {error}") from None


def verified(store: Store, manifest: Manifest, name: str, folder: Path) -> Path:
    """A local path of the file `name`, its bytes checked; downloaded to `folder` where needed.

    Raises DataCorrupt where size or sha256 differ from the manifest, or the file is gone.
    """
    entry = manifest.file(name)
    try:
        path = local_copy(store, name, folder)
        with explained("read", path):
            size = path.stat().st_size
        if size == entry.bytes and sha256_of(path) == entry.sha256:
            return path
        damage = f"{size} bytes, or their sha256, are not those of its manifest"
    except NotFound:
        damage = "its manifest lists it, but it is not there"
    raise DataCorrupt(
        f"{store.uri}/{name} is damaged: {damage}",
        expected=f"{entry.bytes} bytes, sha256 {entry.sha256}",
        mend="igpt-jobs resume RUN --from STEP goes on from an older checkpoint.",
    )


def local_copy(store: Store, name: str, folder: Path) -> Path:
    """The file itself where the store is a directory, else a download in `folder`.

    Raises NotFound where there is none.
    """
    path = store.local_path(name)
    if path is None:
        path = folder / name
        store.download(name, path)
    elif not store.exists(name):
        raise NotFound(f"there is no {path}")
    return path


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with explained("read", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest_attempt(names: list[str], store: Store) -> str | None:
    """The highest numbered `attempt-<n>` of `names` that is sealed.

    Of two attempts that committed the same step the later one began below it, so it rules.
    """
    attempts = [match for name in names if (match := re.fullmatch(r"attempt-(\d+)", name))]
    for match in sorted(attempts, key=lambda match: -int(match[1])):
        if store.exists(f"{match[0]}/{SEAL}"):
            return match[0]
    return None
