"""What the paths of an image folder mean: split, class and image.

Three layouts are known: `<class>/file`, `{train,validation|val,test}/<class>/file`, and files
without classes, at the top or in folders of splits. Folders below a class are part of the name
only, and folders around the whole (`cifar10/train/cat/1.png`) count for nothing. Hidden files and
`__MACOSX` are passed over; other files that are not images by their suffix are passed over too,
and counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from igpt.data.images import SUFFIXES
from igpt.data.sources import Record
from igpt.errors import UserError

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_KNOWN = "<class>/image, {train,validation,test}/<class>/image, or images without folders"


@dataclass(frozen=True)
class Layout:
    """The images in the order of their names, which are their paths, and the classes."""

    records: tuple[Record, ...]
    classes: tuple[str, ...]
    ignored: tuple[str, ...]  # files that are not images by their suffix


def read_layout(paths: Iterable[str], where: str) -> Layout:
    """The layout of relative, slash-separated `paths`; `where` names the whole in errors.

    Raises UserError for no images at all, for images beside folders of images, for a class that
    only the validation or test split has, and for names that are not text.
    """
    shown = [path for path in paths if not _hidden(path)]
    images = sorted(path for path in shown if path.lower().endswith(SUFFIXES))
    ignored = sorted(path for path in shown if not path.lower().endswith(SUFFIXES))
    if not images:
        expected = f"files that end in {', '.join(SUFFIXES)}"
        raise UserError(f"{where} holds no images", expected=expected)
    for path in images:
        if not path.isprintable():  # what is not UTF-8 arrives as lone surrogates
            raise UserError(f"{where}: the name {path!r} is not plain text")

    folders = _below_wrapping([path.split("/")[:-1] for path in images])
    if all(folder and folder[0] in _SPLITS for folder in folders):
        names = {folder[0] for folder in folders}
        if {"val", "validation"} <= names:
            raise UserError(f"{where} holds both val and validation", expected="one of them")
        splits = [_SPLITS[folder[0]] for folder in folders]
        folders = [folder[1:] for folder in folders]
    else:
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


def _below_wrapping(folders: list[list[str]]) -> list[list[str]]:
    """The folders without those that hold everything and are neither a split nor a class."""
    while (
        all(len(folder) >= 2 for folder in folders)
        and len({folder[0] for folder in folders}) == 1
        and folders[0][0] not in _SPLITS
    ):
        folders = [folder[1:] for folder in folders]
    return folders


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
