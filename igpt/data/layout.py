"""What the paths of an image folder mean: split, class and image.

Three layouts are known: `<class>/file`, `{train,validation,test}/<class>/file`, and files without
classes, at the top or in folders of splits. A split may also be called `val`, `valid` or `dev`, in
letters of any size. Folders below a class are part of the name only, and folders around the whole
(`cifar10/train/cat/1.png`) count for nothing. Hidden files and `__MACOSX` are passed over; other
files that are not images by their suffix are passed over too, and counted.

One folder beside others may be called like a split: CIFAR-100 has a class `train`. Two are splits,
and what lies beside or above them is refused: as classes they would put test images into training.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from igpt.data.images import SUFFIXES
from igpt.data.sources import Record
from igpt.errors import UserError

_SPLITS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
#: Control characters, and the lone surrogates as which bytes arrive that are not UTF-8.
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_KNOWN = "<class>/image, {train,validation,test}/<class>/image, or images without folders"


@dataclass(frozen=True)
class Layout:
    """The images in the order of their names, which are their paths, and the classes."""

    records: tuple[Record, ...]
    classes: tuple[str, ...]
    ignored: tuple[str, ...]  # files that are not images by their suffix


def read_layout(paths: Iterable[str], where: str) -> Layout:
    """The layout of relative, slash-separated `paths`; `where` names the whole in errors.

    Raises UserError for no images at all, for images beside folders of images, for splits beside
    what is no split, for a class that only the validation or test split has, and for names that
    are not text.
    """
    shown = [path for path in paths if not _hidden(path)]
    images = sorted(path for path in shown if path.lower().endswith(SUFFIXES))
    ignored = sorted(path for path in shown if not path.lower().endswith(SUFFIXES))
    if not images:
        expected = f"files that end in {', '.join(SUFFIXES)}"
        raise UserError(f"{where} holds no images", expected=expected)
    for path in images:
        if _NO_TEXT.search(path):
            raise UserError(f"{where}: the name {path!r} is not plain text")

    folders = _below_wrapping([path.split("/")[:-1] for path in images], where)
    names = {_first(folder) for folder in folders}
    if all(map(_split, names)):
        called: dict[str | None, str] = {}
        for name in sorted(names):
            if (other := called.setdefault(_split(name), name)) != name:
                raise UserError(f"{where} holds both {other} and {name}", expected="one of them")
        splits = [_SPLITS[folder[0].lower()] for folder in folders]
        folders = [folder[1:] for folder in folders]
    else:
        _refuse_splits_of_classes(folders, where)
        splits = ["train"] * len(images)
    found = [folder[0] if folder else "" for folder in folders]
    classes = _classes(images, splits, found, where)
    places = {name: place for place, name in enumerate(classes)}
    records = tuple(
        Record(path, places.get(name, -1), split)
        for path, name, split in zip(images, found, splits, strict=True)
    )
    return Layout(records, classes, tuple(ignored))


def _hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _first(folder: list[str]) -> str:
    """The outermost of a file's folders; empty where it lies in none."""
    return folder[0] if folder else ""


def _split(name: str) -> str | None:
    """The split of which a folder of this name holds the images; None where it is none."""
    return _SPLITS.get(name.lower())


def _below_wrapping(folders: list[list[str]], where: str) -> list[list[str]]:
    """The folders without those that hold everything and are neither a split nor a class.

    Raises UserError where splits lie beside something else, there or one level below a folder that
    holds everything.
    """
    _refuse_mixture({_first(folder) for folder in folders}, where)
    while len(top := {_first(folder) for folder in folders}) == 1 and not _split(name := top.pop()):
        below = [folder[1:] for folder in folders]
        if name:
            where = f"{where}/{name}"
            _refuse_mixture({_first(folder) for folder in below}, where)
        if not all(below):
            break
        folders = below
    return folders


def _refuse_mixture(names: set[str], where: str) -> None:
    """Raises UserError where two or more of the names are those of splits and another is not."""
    splits = sorted(filter(_split, names))
    others = sorted(name for name in names if not _split(name))
    if len(splits) >= 2 and others:
        beside = f"the folder {others[0]}" if others[0] else "an image"
        raise UserError(
            f"{where} holds the splits {', '.join(splits)}, and {beside} beside them",
            expected=_KNOWN,
            mend="Move away what belongs to no split; if all of them are classes, put them into a "
            "folder train",
        )


def _refuse_splits_of_classes(folders: list[list[str]], where: str) -> None:
    """Raises UserError where the folder of a class holds splits: `<class>/{train,test}/image`."""
    below: dict[str, set[str]] = {}
    for folder in folders:
        if len(folder) >= 2 and _split(folder[1]):
            below.setdefault(folder[0], set()).add(folder[1])
    for name, splits in sorted(below.items()):
        if len(splits) >= 2:
            raise UserError(
                f"{where} holds the splits {', '.join(sorted(splits))} inside of {name}",
                expected=_KNOWN,
                mend="Put the splits outside, the classes inside",
            )


def _classes(images: list[str], splits: list[str], found: list[str], where: str) -> tuple[str, ...]:
    """The classes, sorted, once each split has been seen to be wholly with or without them."""
    of_split: dict[str, set[str]] = {}
    for split, name in zip(splits, found, strict=True):
        of_split.setdefault(split, set()).add(name)
    for split, names in of_split.items():
        if "" in names and len(names) > 1:
            loose = next(
                path
                for path, s, n in zip(images, splits, found, strict=True)
                if s == split and not n
            )
            raise UserError(
                f"{where}: image {loose} lies beside folders of images", expected=_KNOWN
            )
    known = of_split.get("train")
    for split, names in of_split.items():
        strange = sorted(names - (known or names) - {""})
        if strange:
            raise UserError(
                f"{where}: class {strange[0]!r} of {split} is not a class of train",
                expected=_KNOWN,
            )
    return tuple(sorted(set().union(*of_split.values()) - {""}))
