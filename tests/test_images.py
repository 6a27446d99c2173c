"""Images of all kinds and folders of them are read; what is left out is counted."""

import io
import logging
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, features

from cifar_research import config
from cifar_research.data import datasets, image_files, image_folders, images, splits
from cifar_research.runtime.errors import DataError, ImageError

GREY = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
COLOUR = np.dstack([GREY, GREY.T, 255 - GREY])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_CACHE_DIR", str(tmp_path / "cache"))


def fill(folder, count=10, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (i, 100, 200)).save(folder / f"{i}.{suffix}")
    return folder


def pets(tmp_path, count=10):
    for name in ("cat", "dog"):
        fill(tmp_path / "pets" / name, count)
    return tmp_path / "pets"


def load(folder, *overrides):
    arguments = ["data=images", f"data.dir={folder}", "data.image_size=8", *overrides]
    return datasets.load(config.parse(arguments).data)


def sizes(data):
    return len(data.train), len(data.val), len(data.test)


# ---- numbers, modes and transparency ----

NUMBERS = {
    "float up to 1": GREY.astype(np.float32) / 255,
    "double up to 1": GREY / 255,
    "float up to 255": GREY.astype(np.float32),
    "float of 12 bits": GREY.astype(np.float32) / 255 * 4095,
    "float of 16 bits": GREY.astype(np.float32) * 257,
    "8 bits in 16": GREY.astype(np.uint16),
    "12 bits in 16": np.rint(GREY / 255 * 4095).astype(np.uint16),
    "16 bits": GREY.astype(np.uint16) * 257,
    "8 bits in 32": GREY.astype(np.int32),
    "16 bits in 32": GREY.astype(np.int32) * 257,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_other_numbers_than_bytes_are_scaled_in_files_pictures_and_arrays_alike(tmp_path, name):
    expected = images.decode(np.dstack([GREY] * 3), 64).astype(int)
    values = NUMBERS[name] * (1 if "up to 1" not in name else 255 / GREY.max())  # up to the end of the range
    assert abs(images.decode(NUMBERS[name], 64) - expected).max() <= 1
    assert abs(images.decode(np.dstack([NUMBERS[name]] * 3), 64) - expected).max() <= 1
    picture = Image.fromarray(NUMBERS[name].astype(np.float32) if values.dtype == np.float64 else NUMBERS[name])
    assert abs(images.decode(picture, 64) - expected).max() <= 1
    picture.save(tmp_path / "a.tif")
    assert abs(images.decode(tmp_path / "a.tif", 64) - expected).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1.0, 1]]), np.array([[np.nan, 1]]), np.array([[np.inf, 1]]), np.array([[0, 7.5]]),
        np.array([[0, 1e6]], np.float32), np.array([[-3, 300]], np.int32), np.array([[0, 70_000]], np.int32),
        np.array([[0, 3]], np.uint16), np.array([[1j]]), np.zeros((2, 2, 5), np.uint8), np.zeros(3), np.zeros((0, 3, 3)),
    ],
)  # fmt: skip
def test_numbers_of_unclear_range_are_refused_and_not_read_as_black(values):
    with pytest.raises(ImageError, match="ndarray: cannot be read as an image"):
        images.decode(values, 8)


def test_false_and_nothing_but_zeros_are_black():
    for values in (np.zeros((4, 4), np.uint16), np.zeros((4, 4)), np.zeros((4, 4), bool)):
        assert not images.decode(values, 4).any()
    assert (images.decode(np.ones((4, 4), bool), 4) == 255).all()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(values, *chunks):
    """Return a PNG of 16 bits a channel."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + end


@pytest.mark.parametrize(("bits", "most"), [(8, 255), (12, 4095), (16, 65535)])
def test_sixteen_bits_a_channel_hold_fewer(tmp_path, bits, most):
    values = np.rint(COLOUR / 255 * most).astype(np.uint16)
    opaque = np.full_like(values[..., :1], most)
    for channels in (values, np.dstack([values, opaque])):
        (tmp_path / "deep.png").write_bytes(deep_png(channels))
        assert abs(images.decode(tmp_path / "deep.png", 64).astype(int) - COLOUR).max() <= 1, (bits, channels.shape)
    if bits == 12:
        (tmp_path / "deep.png").write_bytes(deep_png(np.dstack([values[..., :1], opaque])))
        with pytest.raises(ImageError, match="12 or fewer"):
            images.decode(tmp_path / "deep.png", 64)


def hidden(mode, behind):
    """Return a picture with half of it fully transparent, and `behind` under that half."""
    pixels = COLOUR.copy()
    pixels[:, 32:] = behind
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, :32] = 255
    picture = Image.fromarray(np.dstack([pixels, alpha]))
    between = picture.convert("LA") if mode == "La" else picture
    return picture if mode == "RGBA" else between.convert(mode)


@pytest.mark.parametrize("behind", [0, 255, 77])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_what_transparency_hides_does_not_count(tmp_path, mode, behind):
    picture = hidden(mode, behind)
    result = [images.decode(picture, 64)]
    if mode in ("RGBA", "LA"):
        picture.save(tmp_path / "a.png")
        picture.save(tmp_path / "a.webp", lossless=True, exact=True)
        result += [images.decode(tmp_path / f"a.{suffix}", 64) for suffix in ("png", "webp")]
        result += [images.decode(np.asarray(picture), 64), images.decode(np.asarray(picture) / 255, 64)]
    for pixels in result:
        assert (pixels[:, 32:] == 255).all() and pixels[:, :32].min() < 40


def test_keyed_transparency_is_white_too(tmp_path):
    keyed = {
        "rgb.png": (Image.fromarray(COLOUR), tuple(map(int, COLOUR[0, 0]))),
        "grey.png": (Image.fromarray(GREY), int(GREY[0, 0])),
        "deep.png": (Image.fromarray(GREY.astype(np.uint16) * 257), int(GREY[0, 0]) * 257),
        "palette.png": (palette := Image.fromarray(COLOUR).quantize(16), palette.getpixel((0, 0))),
        "palette.gif": (palette, palette.getpixel((0, 0))),
        "alphas.png": (palette, bytes(0 if i == palette.getpixel((0, 0)) else 255 for i in range(16))),
    }
    for name, (picture, key) in keyed.items():
        picture.save(tmp_path / name, transparency=key)
        assert (images.decode(tmp_path / name, 64)[0, 0] == 255).all(), name
    (tmp_path / "deep.png").write_bytes(
        deep_png(COLOUR * np.uint16(257), chunk(b"tRNS", (COLOUR[0, 0] * np.uint16(257)).astype(">u2").tobytes()))
    )
    assert (images.decode(tmp_path / "deep.png", 64)[0, 0] == 255).all()


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPG", "webp", "tif", "tiff", "bmp", "gif", "ppm", "avif", "jp2"])
def test_every_format_is_listed_and_decoded(tmp_path, suffix):
    if suffix in ("avif", "jp2") and not features.check({"avif": "avif", "jp2": "jpg_2000"}[suffix]):
        pytest.skip("this Pillow does not read it")
    frames = {"save_all": True, "append_images": [Image.new("RGB", (64, 64))]} if suffix in ("gif", "webp") else {}
    Image.fromarray(COLOUR).save(tmp_path / f"a.{suffix}", **frames)
    assert image_files.find(tmp_path) == ([tmp_path / f"a.{suffix}"], {})
    assert abs(images.decode(tmp_path / f"a.{suffix}", 64).astype(int) - COLOUR).mean() < 25


# ---- metadata ----


def tiff(*entries):
    """Return EXIF with these (tag, type, count, value), a value being four bytes."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def png(*chunks):
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "PNG")
    content = buffer.getvalue()
    return content[:33] + b"".join(chunks) + content[33:]


def jpeg(*segments):
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "JPEG", quality=95)
    content = buffer.getvalue()
    made = b"".join(bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data for marker, data in segments)
    return content[:2] + made + content[2:]


TURN = (0x0112, 3, 1, b"\6")
ODD = (0x010F, 5, 1, struct.pack("<I", 4000))  # a rational at a place that is not there
TURNED, UPRIGHT = True, False
METADATA = {
    "PNG, EXIF of rubbish": (png(chunk(b"eXIf", b"\0\x08\0\x02\x01")), UPRIGHT),
    "PNG, EXIF cut": (png(chunk(b"eXIf", tiff(TURN, ODD)[:30])), TURNED),
    "PNG, EXIF with a bad checksum": (png(chunk(b"eXIf", tiff(TURN))[:-4] + b"\0\0\0\0"), TURNED),
    "PNG, profile of no hexadecimals": (png(chunk(b"tEXt", b"Raw profile type exif\0\n1\n2\nzz")), UPRIGHT),
    "PNG, text that unpacks to much": (png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20)))), UPRIGHT),
    "PNG, the same beside sound EXIF": (
        png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20))), chunk(b"eXIf", tiff(TURN))), TURNED),
    "PNG, ICC profile of an unknown kind": (png(chunk(b"iCCP", b"a\0\7rubbish")), UPRIGHT),
    "PNG, text with a bad checksum": (png(chunk(b"tEXt", b"a\0b")[:-1] + b"!"), UPRIGHT),
    "PNG, no animation": (png(chunk(b"acTL", bytes(8))), UPRIGHT),
    "JPEG, EXIF of rubbish": (jpeg((0xE1, b"Exif\0\0" + b"\0\x08\0\x02\x01\x12\0\x03" * 4)), UPRIGHT),
    "JPEG, empty EXIF": (jpeg((0xE1, b"Exif\0\0")), UPRIGHT),
    "JPEG, EXIF cut": (jpeg((0xE1, b"Exif\0\0" + tiff(TURN, ODD)[:20])), UPRIGHT),
    "JPEG, another tag is damaged": (jpeg((0xE1, b"Exif\0\0" + tiff(TURN, ODD))), TURNED),
    "JPEG, two turns": (jpeg((0xE1, b"Exif\0\0" + tiff((0x0112, 3, 2, b"\6\0\6")))), TURNED),
    "JPEG, a turn of text": (jpeg((0xE1, b"Exif\0\0" + tiff((0x0112, 2, 2, b"6")))), UPRIGHT),
    "JPEG, a number where text is expected": (
        jpeg((0xE1, b"Exif\0\0" + tiff(TURN, (0x0132, 3, 1, b"\7")))), TURNED),
    "JPEG, JFIF cut": (jpeg((0xE0, b"JFIF\0")), UPRIGHT),
    "JPEG, Photoshop's cut": (jpeg((0xED, b"Photoshop 3.0\x008BIM\4")), UPRIGHT),
    "JPEG, ICC cut": (jpeg((0xE2, b"ICC_PROFILE\0")), UPRIGHT),
    "JPEG, several pictures that are not there": (jpeg((0xE2, b"MPF\0rubbish")), UPRIGHT),
}  # fmt: skip


@pytest.mark.parametrize("name", METADATA)
def test_metadata_do_not_decide_over_pixels(tmp_path, caplog, name):
    content, is_turned = METADATA[name]
    path = tmp_path / f"a.{name.partition(',')[0].lower()}"
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as shown, caplog.at_level(logging.INFO), images.without_warnings():
        result = images.decode(path, 64).astype(int)
    expected = np.rot90(COLOUR, -1) if is_turned else COLOUR
    assert abs(result - expected).mean() < 4 and not shown
    assert len(caplog.records) <= 1 and all(str(path) in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html></html>", jpeg()[:700], png()[:100], png()[:29] + bytes(4) + png()[33:], png()[:8], jpeg()[:3]],
)  # fmt: skip
def test_damaged_pixels_are_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png: cannot be read as an image"):
        images.decode(tmp_path / "a.png", 8)


def test_what_pillow_warns_of_is_not_shown_and_what_it_refuses_is_named(tmp_path, monkeypatch):
    folder = pets(tmp_path, 4)
    Image.new("RGB", (100, 100)).save(folder / "cat" / "large.png")
    (folder / "dog" / "cut.jpg").write_bytes(jpeg((0xE1, b"Exif\0\0" + tiff(TURN, ODD)[:20])))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    with warnings.catch_warnings(record=True) as shown:
        data = load(folder)
    assert not shown and sum(sizes(data)) == 10
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4500)
    with pytest.raises(ImageError, match=r"large\.png.*exceeds limit of 9000 pixels"):
        images.decode(folder / "cat" / "large.png", 8)


# ---- folders ----


def test_links_are_followed_once_and_what_the_system_leaves_is_not_read(tmp_path):
    fill(tmp_path / "elsewhere", 3)
    top = fill(tmp_path / "photos", 2)
    for name in (".thumbnails", "@eaDir", "__MACOSX", "deeper/still", "deeper/.cache"):
        fill(top / name, 1)
    (top / "Thumbs.db").touch()
    (top / "linked").symlink_to(tmp_path / "elsewhere")
    (top / "again").symlink_to(tmp_path / "elsewhere")
    (top / "deeper" / "loop").symlink_to(top)
    (top / "up").symlink_to(tmp_path)
    (top / "self.png").symlink_to("self.png")
    (top / "gone.png").symlink_to("nowhere")
    os.mkfifo(top / "pipe.png")
    for name in ("IMG_1.HEICS", "a.svg", "b.svg", "notes.txt", "no_suffix"):
        (top / name).touch()
    files, left_out = image_files.find(top)
    assert len(files) == 2 + 1 + 3 and not any(".thumb" in str(file) or "@" in str(file) for file in files)
    counts = {reason: len(names) for reason, names in left_out.items()}
    assert counts == {
        "folder already read": 3, "broken link": 2, "not a file": 1, ".svg (no reader)": 2, ".txt (not an image)": 1,
        "other files (not an image)": 1, ".heics (not an image)": 1,
    }  # fmt: skip
    line = "6 images used; left out: 3 folders already read, 2 broken links, 2 .svg (no reader), 1 "
    assert image_files.summary(6, counts).startswith(line)


def test_deep_and_linked_classes_and_every_format_train(tmp_path, caplog):
    folder = tmp_path / "pets"
    fill(folder / "cat" / "images", 10, "webp")
    (folder / "cat" / "boxes.txt").touch()
    fill(tmp_path / "elsewhere", 10, "tif")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "dog" / "new.jxl").touch()
    (folder / "README.md").touch()
    with caplog.at_level(logging.INFO):
        for _ in range(2):  # the second time from the cache
            data = load(folder)
            assert data.classes == ("cat", "dog") and sum(sizes(data)) == 20 and data.note is None
            assert data.left_out == {".md (not an image)": 1, ".txt (not an image)": 1, ".jxl (no reader)": 1}
    assert "20 images used; left out: 1 " in data.file_summary()
    assert caplog.text.count("left out, .jxl (no reader): dog/new.jxl") == 2


def damage(folder, count):
    for path in sorted(folder.rglob("*.png"))[:count]:
        path.write_bytes(b"rubbish")


@pytest.mark.parametrize(
    ("count", "word", "is_taken"),
    [(1, "0.01", True), (2, "0.01", False), (2, "0.2", True), (5, "0.2", False), (1, "0", False), (10, "1", False)],
)
def test_damaged_images_are_left_out_up_to_a_share(tmp_path, caplog, count, word, is_taken):
    folder = pets(tmp_path)
    damage(folder, count)
    if is_taken:
        with caplog.at_level(logging.INFO):
            data = load(folder, f"data.max_damaged={word}")
        assert sum(sizes(data)) == 20 - count and data.left_out == {"damaged": count}
        assert "0.png (its format is not supported)" in caplog.text
        with pytest.raises(DataError, match="data.max_damaged"):  # with a lower limit
            load(folder, "data.max_damaged=0")
    else:
        reason = (
            "'cat' needs at least . readable images" if word == "1" else rf"data.max_damaged: {count} of 20 .*0\.png \("
        )
        with pytest.raises(DataError, match=reason):
            load(folder, f"data.max_damaged={word}")
        assert not list((tmp_path / "cache").glob("*/meta.json"))


def test_a_broken_link_is_damaged_and_a_file_that_comes_back_is_used(tmp_path):
    folder = pets(tmp_path)
    (folder / "dog" / "x.png").symlink_to(tmp_path / "nowhere.png")
    assert load(folder).left_out == {"broken link": 1}
    Image.new("RGB", (8, 8)).save(tmp_path / "nowhere.png")
    data = load(folder, "data.max_damaged=0")
    assert sum(sizes(data)) == 21 and not data.left_out and "left out" not in data.file_summary()


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_val_beside_train_and_test_is_the_validation_set(tmp_path, name):
    for part, count in (("train", 6), (name, 4), ("test", 2), ("extra", 3)):
        for pet in ("cat", "dog"):
            fill(tmp_path / "d" / part / pet, count)
    data = load(tmp_path / "d")
    assert sizes(data) == (12, 8, 4) and data.note is None and data.val.labels.tolist() == [0] * 4 + [1] * 4
    assert data.left_out == {f"in extra/ (beside train/ and test/ and {name}/)": 6}
    for unused in ("data.val_fraction=0.3", "data.test_fraction=0.3"):
        assert f"{unused} is not used" in load(tmp_path / "d", unused).note
    tested = load(tmp_path / "d", "data.validation=test")
    assert tested.val is tested.test and "val/ unused" in tested.note
    chosen = load(tmp_path / "d", "data.classes=[dog,cat]")
    assert chosen.val.labels.tolist() == [1] * 4 + [0] * 4
    Image.new("RGB", (8, 8)).save(tmp_path / "d" / name / "overview.png")
    stray = load(tmp_path / "d")
    assert sizes(stray) == (12, 8, 4) and stray.left_out["image beside the class folders"] == 1
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "d" / name / "cat" / "0.png")
    assert load(tmp_path / "d").fingerprint != data.fingerprint


def test_images_of_test_and_validation_are_drawn_by_other_numbers(tmp_path, monkeypatch):
    fill(tmp_path / "d" / "cat", 10)
    fill(tmp_path / "d" / "dog", 10)
    draws, hold_out = [], splits.hold_out
    for module in (image_folders, splits):
        monkeypatch.setattr(module, "hold_out", lambda labels, *rest: (draws.append(rest), hold_out(labels, *rest))[1])
    load(tmp_path / "d")
    (_, of_test), (_, of_validation) = draws
    assert not np.array_equal(np.random.default_rng(of_test).random(9), np.random.default_rng(of_validation).random(9))


def test_train_and_val_without_test(tmp_path):
    for part in ("train", "val"):
        for pet in ("cat", "dog"):
            fill(tmp_path / "d" / part / pet, 10)
    data = load(tmp_path / "d")
    assert sizes(data) == (16, 20, 4) and "data.test_fraction=0.2 of train/ is the test set" in data.note


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["Training", "Testing"], r"has Testing/, which looks like a split"),
        (["Validation"], r"has Validation/, which looks like a split"),
        (["train"], r"has train/, which looks like a split"),
        (
            ["pets/train", "pets/test", "cars/train", "cars/test"],
            r"pets: has train/ and test/|cars: has train/ and test/",
        ),
    ],
)
def test_parts_of_a_data_set_are_not_taken_for_classes(tmp_path, folders, message):
    for name in folders:
        for pet in ("cat", "dog"):
            fill(tmp_path / "d" / name / pet, 4)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "d")


def test_subfolders_that_become_one_class_are_named(tmp_path):
    for name in ("shop/cat", "shop/dog", "home/cat", "home/dog"):
        fill(tmp_path / "d" / name, 4)
    data = load(tmp_path / "d")
    assert data.classes == ("home", "shop") and "home (cat, dog), shop (cat, dog)" in data.note


@pytest.mark.parametrize(
    "mark", ["run/.hydra/config.yaml", "sweep/jobs.jsonl", "leaderboard.csv", "day/run/.hydra/x", "bin/pyvenv.cfg"]
)
def test_runs_beside_the_classes_are_not_a_class(tmp_path, mark):
    folder = pets(tmp_path)
    (folder / "outputs" / mark).parent.mkdir(parents=True)
    (folder / "outputs" / mark).touch()
    fill((folder / "outputs" / mark).parent.parent if ".hydra" in mark else (folder / "outputs" / mark).parent, 3)
    data = load(folder)
    assert data.classes == ("cat", "dog") and data.left_out == {"folder of runs": 1}
    fill(folder / "outputs" / "mine", 2)
    if mark != "leaderboard.csv":
        with pytest.raises(DataError, match="outputs: holds runs .* and images"):
            load(folder)


def test_our_own_cache_is_not_a_class(tmp_path):
    folder = pets(tmp_path)
    for _ in range(2):
        data = load(folder, f"data.cache_dir={folder / 'kept'}")
    assert data.classes == ("cat", "dog") and data.left_out == {"folder of runs": 1}


def test_a_class_without_images_that_can_be_read_is_refused(tmp_path):
    folder = pets(tmp_path)
    (folder / "fish").mkdir()
    (folder / "fish" / "a.jxl").touch()
    with pytest.raises(
        DataError, match=r"fish: has no readable image \(0 images used; left out: 1 \.jxl \(no reader\)\)"
    ):
        load(folder)
