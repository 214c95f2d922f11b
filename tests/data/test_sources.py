"""Sources: folders, tars and arrays, in one order everywhere, with clear refusals."""

import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from igpt.data import ArraySource, BadImage, Source, check_source, open_source
from igpt.data.images import decode_image
from igpt.errors import UserError
from tests.data.examples import a_source, encoded, noise, write_files

SPLIT_NAMES = [
    "val/dog/9.png",
    "train/dog/2.png",
    "train/cat/10.png",
    "train/cat/sub/3.JPEG",
    "test/cat/1.png",
]


def pack(root: Path, archive: Path, mode: str = "w") -> None:
    with tarfile.open(archive, mode) as tar:
        for path in sorted(root.rglob("*"), reverse=True):  # any order but the sorted one
            tar.add(path, path.relative_to(root).as_posix(), recursive=False)


def listed(source: Source) -> list[tuple[str, int, str]]:
    records = [source.record(i) for i in range(len(source))]
    return [(record.name, record.label, record.split) for record in records]


def test_a_folder_of_splits_and_classes(tmp_path: Path) -> None:
    write_files(tmp_path, SPLIT_NAMES)
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ("cat", "dog")
    assert listed(source) == [
        ("test/cat/1.png", 0, "test"),
        ("train/cat/10.png", 0, "train"),
        ("train/cat/sub/3.JPEG", 0, "train"),
        ("train/dog/2.png", 1, "train"),
        ("val/dog/9.png", 1, "validation"),
    ]
    assert source.image(3).shape == (8, 8, 3)
    assert source.image(3).max() == 1
    assert source.describe()["splits"] == {"test": 1, "train": 3, "validation": 1}


@pytest.mark.parametrize(
    ("names", "expected", "classes"),
    [
        (["b/1.png", "a/1.png"], [("a/1.png", 0), ("b/1.png", 1)], ("a", "b")),
        (["2.png", "1.webp"], [("1.webp", -1), ("2.png", -1)], ()),
        (["train/2.png"], [("train/2.png", -1)], ()),
        (["all/x/b/1.png", "all/x/a/1.png"], [("all/x/a/1.png", 0), ("all/x/b/1.png", 1)], None),
        (["zoo/train/a/1.png"], [("zoo/train/a/1.png", 0)], ("a",)),
        (["train/1.png", "plane/1.png"], [("plane/1.png", 0), ("train/1.png", 1)], None),
    ],
)
def test_layouts(
    tmp_path: Path,
    names: list[str],
    expected: list[tuple[str, int]],
    classes: tuple[str, ...] | None,
) -> None:
    write_files(tmp_path, names)
    source = open_source(f"folder:{tmp_path}")
    assert [(name, label) for name, label, _ in listed(source)] == expected
    assert {split for _, _, split in listed(source)} == {"train"}
    assert classes is None or source.classes == classes


@pytest.mark.parametrize("around", ["", "cifar10/"])
@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "valid", "test"), ("Train", "Val", "Test"), ("TRAIN", "dev", "test")],
)
def test_splits_by_their_other_names(
    tmp_path: Path, around: str, train: str, validation: str, test: str
) -> None:
    write_files(tmp_path, [f"{around}{name}/cat/1.png" for name in (train, validation, test)])
    found = {
        name.split("/")[-3]: split for name, _, split in listed(open_source(f"folder:{tmp_path}"))
    }
    assert found == {train: "train", validation: "validation", test: "test"}
    assert open_source(f"folder:{tmp_path}").classes == ("cat",)


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    """CIFAR-100 has a class `train`, in folders of classes alone and in those of splits."""
    write_files(tmp_path / "plain", ["bus/1.png", "train/1.png", "trout/1.png"])
    write_files(
        tmp_path / "split", [f"{s}/{c}/1.png" for s in ("train", "test") for c in ("bus", "train")]
    )
    assert open_source(f"folder:{tmp_path}/plain").classes == ("bus", "train", "trout")
    found = open_source(f"folder:{tmp_path}/split")
    assert found.classes == ("bus", "train")
    assert found.describe()["splits"] == {"test": 2, "train": 2}


@pytest.mark.parametrize(("suffix", "mode"), [("", "w"), (".gz", "w:gz"), (".xz", "w:xz")])
def test_a_tar_is_the_same_source_as_the_folder_in_it(
    tmp_path: Path, suffix: str, mode: str
) -> None:
    write_files(tmp_path / "images", SPLIT_NAMES)
    pack(tmp_path / "images", tmp_path / f"images.tar{suffix}", mode)
    folder = open_source(f"folder:{tmp_path / 'images'}")
    tar = open_source(f"tar:{tmp_path / f'images.tar{suffix}'}")
    assert listed(tar) == listed(folder)
    assert tar.digest == folder.digest
    for number in range(len(folder)):
        assert np.array_equal(tar.image(number), folder.image(number))


def test_a_zip_is_the_same_source_as_the_folder_in_it(tmp_path: Path) -> None:
    write_files(tmp_path / "images", SPLIT_NAMES)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as packed:
        for name in reversed(SPLIT_NAMES):
            packed.write(tmp_path / "images" / name, name)
        packed.writestr("../evil.png", encoded(noise(1)[0]))
    folder = open_source(f"folder:{tmp_path / 'images'}")
    found = open_source(f"zip:{tmp_path / 'images.zip'}")
    assert listed(found) == listed(folder)
    assert found.digest == folder.digest
    for number in range(len(folder)):
        assert np.array_equal(found.image(number), folder.image(number))


def test_a_damaged_zip_is_refused_as_a_whole_or_by_image(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a/1.png", encoded(noise(1)[0]))
    content = bytearray(archive.read_bytes())
    content[100] ^= 1
    archive.write_bytes(content)
    with pytest.raises(BadImage, match=r"a/1\.png"):
        open_source(f"zip:{archive}").image(0)
    archive.write_bytes(content[:60])
    with pytest.raises(UserError, match="not a whole zip"):
        open_source(f"zip:{archive}")


def test_the_digest_follows_names_and_sizes_but_not_the_place(tmp_path: Path) -> None:
    for place in ("one", "two", "three"):
        write_files(tmp_path / place, ["a/1.png", "b/2.png"])
    os.rename(tmp_path / "three/a/1.png", tmp_path / "three/a/3.png")
    digests = [
        open_source(f"folder:{tmp_path / place}").digest for place in ("one", "two", "three")
    ]
    assert digests[0] == digests[1] != digests[2]


def test_what_a_tar_may_not_hold_is_passed_over(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    picture = encoded(noise(1)[0])
    with tarfile.open(archive, "w") as tar:
        for name in ("./a/1.png", "../evil.png", "/abs/evil.png", "a/../../evil.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert listed(open_source(f"tar:{archive}")) == [("a/1.png", 0, "train")]


def test_a_tar_that_ends_early_or_is_none_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "images", ["a/1.png", "a/2.png"])
    for suffix, mode in (("", "w"), (".xz", "w:xz"), (".gz", "w:gz")):
        archive = tmp_path / f"a.tar{suffix}"
        pack(tmp_path / "images", archive, mode)
        content = archive.read_bytes()
        cut = 600 if not suffix else len(content) // 2
        archive.write_bytes(content[:cut])
        with pytest.raises(UserError, match="not a whole tar"):
            open_source(f"tar:{archive}")
    (tmp_path / "text.tar").write_text("no tar")
    with pytest.raises(UserError, match="not a whole tar"):
        open_source(f"tar:{tmp_path / 'text.tar'}")


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda whole: whole[:1024], "cut off at byte 1,024 of 1,024"),
        (lambda whole: whole[:1324], "cut off at byte 1,024 of 1,324"),
        (lambda whole: whole[:1024] + b"x" * 512 + whole[1536:], "damaged at byte 1,024 of 10,240"),
        (
            lambda whole: whole[:1024] + bytes(512) + whole[1536:],
            "more follows its end at byte 1,024 of 10,240",
        ),
        (lambda whole: whole + whole, "more follows its end at byte 2,048 of 20,480"),
    ],
)
def test_no_image_of_a_cut_or_damaged_tar_is_lost_without_a_word(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes], problem: str
) -> None:
    buffer, picture = io.BytesIO(), encoded(noise(1)[0])
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(2):  # a header and a block each
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
    content = damage(buffer.getvalue())
    packed = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](content)
    (tmp_path / f"b.tar{suffix}").write_bytes(packed)
    with pytest.raises(UserError, match=f"not a whole tar: .*{problem}"):
        open_source(f"tar:{tmp_path}/b.tar{suffix}")


def test_files_that_are_not_images_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(tmp_path, ["a/1.png"])
    for name in ("a/labels.txt", ".DS_Store", "a/._1.png", "__MACOSX/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 1
    assert source.describe()["ignored"] == 1
    assert "labels.txt" in caplog.text


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_files(tmp_path / "elsewhere", ["1.png"])
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "images/a/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/a/loop").symlink_to(tmp_path / "images")
    assert listed(open_source(f"folder:{tmp_path / 'images'}")) == [("a/linked/1.png", 0, "train")]


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, ["a/1.png"])
    (tmp_path / "a/2.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"a/2\.png cannot be read"):
        open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([], "no images"),
        (["a/1.png", "2.png"], "2.png lies beside folders"),
        (["train/a/1.png", "val/images/2.png"], "'images' of validation is not a class of train"),
        (["train/a/1.png", "val/a/2.png", "validation/a/2.png"], "both val and validation"),
        (["train/a/1.png", "Train/a/1.png"], "both Train and train"),
        (
            ["train/a/1.png", "test/a/1.png", "unlabeled/1.png"],
            "splits test, train, and the folder",
        ),
        (["Train/a/1.png", "dev/a/1.png", "x/1.png"], "splits Train, dev, and the folder x"),
        (["train/a/1.png", "test/a/1.png", "logo.png"], "an image beside them"),
        (["c/train/a/1.png", "c/test/a/1.png", "c/logo.png"], "/c holds the splits .* an image"),
        (["c/train/a/1.png", "c/test/a/1.png", "c/x/1.png"], "/c holds the splits .* folder x"),
        (["a/train/1.png", "a/test/2.png", "b/train/3.png"], "splits test, train inside of a"),
    ],
)
def test_layouts_that_mean_nothing_are_refused(
    tmp_path: Path, names: list[str], problem: str
) -> None:
    write_files(tmp_path, names)
    with pytest.raises(UserError, match=problem):
        open_source(f"folder:{tmp_path}")


def test_names_are_any_text(tmp_path: Path) -> None:
    """macOS writes a narrow no-break space before PM; others come with no-break spaces."""
    names = ["a/Screenshot 9.41\u202fPM.png", "a/x\u00a0y.png", "ж/\U0001f408.png"]
    write_files(tmp_path, names)
    assert [name for name, _, _ in listed(open_source(f"folder:{tmp_path}"))] == names


@pytest.mark.parametrize(
    "name", [b"a/\xff.png", b"a/x\ny.png", b"a/\x1b[2J.png", b"a/\xc2\x85.png"]
)
def test_names_that_are_no_text_are_refused(tmp_path: Path, name: bytes) -> None:
    write_files(tmp_path, ["a/1.png"])
    (tmp_path / "a/1.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    with pytest.raises(UserError, match="not plain text"):
        open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("zip:/nowhere/at/all.zip", "not a file"),
        ("flder:/x", 'unknown scheme; did you mean "folder"'),
        ("/data/cats", 'no scheme; did you mean "folder:/data/cats"'),
        ("folder:/nowhere/at/all", "not a folder"),
        ("tar:/nowhere/at/all.tar", "not a file"),
    ],
)
def test_sources_that_there_are_not(uri: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        open_source(uri)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA", "LA", "I;16", "RGB"])
def test_every_kind_of_picture_becomes_rgb(mode: str) -> None:
    grey = np.full((4, 6), 204, np.uint8)  # a web colour, so that P is exact
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 256)
        assert image.mode == mode
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    buffer = io.BytesIO()
    image.save(
        buffer, "JPEG" if mode == "CMYK" else "PNG", **{"quality": 100} if mode == "CMYK" else {}
    )
    found = decode_image(buffer.getvalue(), "picture")
    assert found.shape == (4, 6, 3)
    assert found.dtype == np.uint8
    if mode != "1":
        assert np.abs(found.astype(int) - 204).max() <= 3


def test_what_is_transparent_shows_white() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    found = decode_image(buffer.getvalue(), "picture")
    assert found[0, 0].tolist() == [10, 20, 30]
    assert found[1, 1].tolist() == [255, 255, 255]


def test_a_picture_is_turned_as_its_camera_says() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    Image.fromarray(noise(1)[0][:4]).save(buffer, "PNG", exif=exif)
    found = decode_image(buffer.getvalue(), "picture")
    assert np.array_equal(found, np.rot90(noise(1)[0][:4], -1))


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of big-endian entries: tag, type, count, and the four bytes of their value."""
    listed = b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + listed + bytes(4)


@pytest.mark.parametrize("orientation", range(10))
def test_each_of_the_eight_orientations_is_turned_upright(orientation: int) -> None:
    picture = Image.fromarray(noise(1)[0][:4])
    exif = exif_of((0x0112, 3, 1, struct.pack(">HH", orientation, 0)))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(buffer))
    assert np.array_equal(decode_image(buffer.getvalue(), "picture"), np.asarray(expected))


@pytest.mark.parametrize(
    "entry",
    [
        (0x010E, 11, 1, bytes(4)),  # a description that is a number
        (0x011A, 2, 4, b"abc\0"),  # a resolution that is a text
        (0xA005, 1, 1, bytes(4)),  # the place of more EXIF as a byte
        (0x8769, 9, 1, b"\xff\xff\xff\xf0"),  # and before the beginning
        (0x0111, 4, 1, b"\xff\xff\xff\xf0"),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_odd_exif_costs_no_picture(kind: str, entry: tuple[int, int, int, bytes]) -> None:
    exif = exif_of((0x0112, 3, 1, struct.pack(">HH", 6, 0)), entry)
    buffer = io.BytesIO()
    Image.fromarray(noise(1)[0][:4]).save(buffer, kind, exif=exif)
    assert decode_image(buffer.getvalue(), "picture").shape == (8, 4, 3)


@pytest.mark.parametrize("given", [(2, 4, b"six\0"), (11, 1, b"\x7f\xc0\0\0")])
def test_an_orientation_that_is_no_number_turns_nothing(given: tuple[int, int, bytes]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(1)[0][:4]).save(buffer, "PNG", exif=exif_of((0x0112, *given)))
    assert np.array_equal(decode_image(buffer.getvalue(), "picture"), noise(1)[0][:4])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_whatever_bytes_are_damaged_it_is_a_picture_or_a_bad_image(kind: str) -> None:
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    exif = {} if kind == "BMP" else {"exif": exif_of((0x0112, 3, 1, struct.pack(">HH", 6, 0)))}
    Image.fromarray(noise(1, 16)[0]).save(buffer, kind, **exif)
    for _ in range(200):
        content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        content[random.integers(0, min(len(content), 200), 4)] = random.integers(0, 256, 4)
        with suppress(BadImage):
            assert decode_image(content.tobytes(), "picture").shape[2] == 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_cut_picture_is_refused_by_name(kind: str) -> None:
    whole = encoded(noise(1, 64)[0], kind)
    with pytest.raises(BadImage, match=r"cats/7\.x"):
        decode_image(whole[: len(whole) // 2], "cats/7.x")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_other_formats_and_bombs_are_refused() -> None:
    with pytest.raises(BadImage, match="not an image"):
        decode_image(encoded(noise(1)[0], "GIF"), "a.png")
    for side in (9_500, 50_000):  # above the limit, and far above it
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        small = encoded(noise(1)[0])
        bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
        with pytest.raises(BadImage, match=r"bomb\.png"):
            decode_image(bomb, "bomb.png")


def test_a_check_of_a_small_source_reads_everything(tmp_path: Path) -> None:
    write_files(tmp_path, [f"a/{i}.png" for i in range(9)])
    source = open_source(f"folder:{tmp_path}")
    assert check_source(source) == 9
    (tmp_path / "a/8.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"a/8\.png"):
        check_source(source)


def test_a_check_of_a_large_source_is_even_and_ends_in_time() -> None:
    class Noting(ArraySource):
        def image(self, number: int) -> NDArray[np.uint8]:
            seen.append(number)
            return super().image(number)

    seen: list[int] = []
    source = Noting(noise(100))
    assert check_source(source, limit=4) == 4
    assert seen == [0, 25, 50, 75]
    ticks = iter(range(100))
    assert check_source(source, seconds=3, clock=lambda: float(next(ticks))) == 3


def test_an_array_source_gives_back_what_it_was_given() -> None:
    source = ArraySource(noise(2), [1, -1], ["train", "test"], ["cat", "dog"], ["x", "y"])
    assert listed(source) == [("x", 1, "train"), ("y", -1, "test")]
    assert np.array_equal(source.image(1), noise(2)[1])
    assert ArraySource(noise(2)).classes == ()
    assert a_source().classes == ("0", "1", "2")


def test_array_sources_are_told_apart_by_everything_they_hold() -> None:
    given = [
        ArraySource(noise(2)),
        ArraySource(noise(2, seed=1)),
        ArraySource(noise(2), [0, 1]),
        ArraySource(noise(2), [0, 0]),
        ArraySource(noise(2), splits=["train", "test"]),
        ArraySource(noise(2), names=["a", "b"]),
    ]
    assert len({source.digest for source in given}) == len(given)
    assert ArraySource(noise(2)).digest == given[0].digest


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"images": noise(2).astype(np.float32)}, "float32"),
        ({"labels": [0]}, "1 labels for 2 images"),
        ({"labels": [0.5, 1]}, "labels are float64"),
        ({"labels": [0, 2], "classes": ["a", "b"]}, "labels run from 0 to 2"),
        ({"labels": [-2, 0]}, "labels run from -2"),
        ({"splits": ["train", "val"]}, "'val' is not a split"),
        ({"names": ["a", "a"]}, "same name"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    changed: dict[str, object], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        ArraySource(**{"images": noise(2), **changed})  # type: ignore[arg-type]
