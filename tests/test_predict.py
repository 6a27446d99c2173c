"""cifar-predict: files, decoding, output, and messages about files that are not images."""

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import refusals
from PIL import Image

import cifar_research
from cifar_research import predict
from cifar_research.config.schema import data_section
from cifar_research.data import datasets, images
from cifar_research.inference import prediction, trained
from cifar_research.runtime.errors import ImageError, RunError


@pytest.fixture(scope="module")
def classifier(finished_run):
    return cifar_research.load(finished_run)


@pytest.fixture(scope="module")
def png_folder(classifier, tmp_path_factory):
    """The run's test images as PNG files, a folder a class."""
    folder, test = tmp_path_factory.mktemp("png"), datasets.load(data_section(classifier.report["config"]["data"])).test
    for row in test.indices:
        path = folder / classifier.classes[test.labels[row]]
        path.mkdir(exist_ok=True)
        Image.fromarray(test.images[row]).save(path / f"{row:04d}.png")
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that calls the command and returns (exit code, output, errors)."""

    def call(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["cifar-predict", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            predict.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def picture(size=(40, 30), seed=0):
    """Return a picture of few colours and large shapes, so that JPEG and palettes keep it."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


def test_every_mode_and_size_becomes_the_models_image(tmp_path):
    rgb = picture()
    expected = images.decode(rgb, 32).astype(int)
    for mode, suffix, most in (
        ("RGBA", "png", 0), ("P", "png", 60), ("CMYK", "jpg", 12), ("RGB", "jpg", 12), ("RGB", "webp", 25), ("RGB", "bmp", 0),
        ("RGB", "tiff", 0), ("RGB", "gif", 60), ("RGB", "ppm", 0),
    ):  # fmt: skip
        path = tmp_path / f"{mode}.{suffix}"
        rgb.convert(mode).save(path, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
        result = images.decode(path, 32)
        assert result.shape == (32, 32, 3) and result.dtype == np.uint8
        assert abs(result - expected).mean() <= most, path
    grey = np.asarray(rgb.convert("L"))
    for mode, array in (("L", grey), ("I;16", grey.astype(np.uint16) * 257), ("I", grey.astype(np.int32) * 257)):
        path = tmp_path / "grey.tiff"
        Image.fromarray(array).save(path)
        with Image.open(path) as image:
            assert image.mode == mode
        result = images.decode(path, 32)
        assert abs(result.astype(int) - images.decode(Image.fromarray(grey), 32)).max() <= 1, mode
    for mode in ("1", "LA"):
        rgb.convert(mode).save(tmp_path / "other.png")
        assert images.decode(tmp_path / "other.png", 32).shape == (32, 32, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_pictures_are_turned_the_way_up_that_their_exif_says(tmp_path, suffix):
    upright = picture()
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / f"turned.{suffix}", exif=exif, quality=95, lossless=True)
    result = images.decode(tmp_path / f"turned.{suffix}", 32).astype(int)
    assert abs(result - images.decode(upright, 32)).mean() < 6


def test_only_formats_that_pillow_reads_itself(tmp_path):
    picture().save(tmp_path / "document.eps")  # for which it would call another program
    (tmp_path / "document.eps").rename(tmp_path / "image.png")
    with pytest.raises(ImageError, match="image.png: cannot be read as an image"):
        images.decode(tmp_path / "image.png", 32)


def test_finds_files_folders_globs_and_lines(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name in ("a/1.png", "a/2.JPG", "a/b/3.webp", "a/notes.txt", "a/.hidden.png", "a/[x].png", "4.img"):
        (tmp_path / name).touch()

    def find(*arguments, stdin=()):
        files, problems, _ = prediction.find(
            [str(tmp_path / word) if word != "-" else word for word in arguments], stdin
        )
        return [str(Path(file).relative_to(tmp_path)) for file in files], problems

    assert find("a") == (["a/1.png", "a/2.JPG", "a/[x].png", "a/b/3.webp"], [])
    assert find("4.img", "a/*.png", "a/1.png") == (["4.img", "a/1.png", "a/[x].png"], [])
    assert find("a", "a/1.png", "a/**")[0] == [
        "a/1.png",
        "a/2.JPG",
        "a/[x].png",
        "a/b/3.webp",
    ]  # each once, no notes.txt
    assert find("a/**/*.webp")[0] == ["a/b/3.webp"]
    assert find("a/[x].png") == (["a/[x].png"], [])  # there is such a file
    lines = [f"{tmp_path / 'a' / '1.png'}\n", "\n", f"{tmp_path / 'a' / 'b'}\r\n", f"{tmp_path}/a/*.png\n"]
    files, problems = find("-", "4.img", stdin=lines)
    assert files == ["a/1.png", "a/b/3.webp", "4.img"] and "*.png: there is no such file" in problems[0]
    assert find("-", stdin=[f"{tmp_path}/a/notes.txt\n"]) == ([], []) and find("a/notes.txt")[0] == ["a/notes.txt"]
    files, problems = find("empty", "nowhere.png", "*.bmp")
    assert files == [] and [problem.rpartition(": ")[2] for problem in problems] == [
        "this folder holds no image", "there is no such file or folder", "there is no such file or folder",
    ]  # fmt: skip


def test_scores_the_test_images_as_the_report_does(call, classifier, png_folder, finished_run):
    code, out, err = call(finished_run, png_folder, "--format", "csv", "--top-k", 3)
    assert code == 0 and "not calibrated" in err
    header, *rows = csv.reader(io.StringIO(out))
    assert header == ["file", "class", "probability", "class2", "probability2", "class3", "probability3"]
    right = np.mean([label == Path(file).parent.name for file, label, *_ in rows])
    assert right == classifier.report["test"]["accuracy"] and len(rows) == 400
    file, *cells = rows[17]
    expected = classifier.probabilities(images.decode(file, 32)[None])[0]
    order = np.argsort(-expected)[:3]
    assert cells[::2] == [classifier.classes[i] for i in order]
    np.testing.assert_allclose([float(cell) for cell in cells[1::2]], expected[order], atol=2e-5)


def test_writes_json_lines(call, classifier, png_folder, finished_run):
    name = classifier.classes[0]
    listed = "".join(f"{path}\n" for path in sorted((png_folder / name).iterdir()))
    code, out, _ = call(finished_run, "-", "--format", "jsonl", stdin=listed)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["file"] for row in rows] == listed.split()
    assert {len(row["predictions"]) for row in rows} == {1}
    assert all(0.1 <= row["predictions"][0]["probability"] <= 1 for row in rows)


def test_a_table_is_aligned_and_bad_files_are_reported_and_skipped(call, finished_run, tmp_path):
    picture().save(tmp_path / "good.png")
    picture(seed=1).convert("CMYK").save(tmp_path / "a longer name.jpg")
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "drawn.svg").touch()
    code, out, err = call(finished_run, tmp_path, tmp_path / "nowhere.png")
    assert code == 1 and "2 images used; left out: 1 .svg (no reader), 1 damaged" in err
    header, first, second = out.splitlines()
    assert first.startswith(str(tmp_path / "a longer name.jpg")) and second.startswith(str(tmp_path / "good.png"))
    assert header.index("class") == len(str(tmp_path / "a longer name.jpg")) + 2
    assert "bad.png: cannot be read as an image" in err and "nowhere.png: there is no such file" in err
    (tmp_path / "good.png").unlink()
    (tmp_path / "a longer name.jpg").unlink()
    code, out, err = call(finished_run, tmp_path)
    assert code == 1 and out.split() == ["file", "class", "probability"]


def test_many_files_keep_their_order(classifier, png_folder, monkeypatch):
    monkeypatch.setattr(prediction, "_BATCH", 30)
    files = prediction.find([str(png_folder)], [])[0] * 2
    files[11] = __file__
    rows = list(prediction.classify(classifier, files))
    assert [file for file, _ in rows] == files
    assert [index for index, (_, row) in enumerate(rows) if isinstance(row, ImageError)] == [11]


def test_calibrated_probabilities(call, finished_run, png_folder, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "run")
    (copy / "evaluation.json").write_text('{"temperature": 100}')
    code, out, err = call(copy, next(png_folder.rglob("*.png")), "--format", "csv")
    assert code == 0 and err == "" and float(out.splitlines()[1].split(",")[2]) < 0.2
    (copy / "evaluation.json").write_text('{"temperature": 1.0, "uncalibrated": "4 images"}')
    assert "note: The probabilities are not calibrated: 4 images\n" in call(copy, next(png_folder.rglob("*.png")))[2]


def test_targets_are_allowed_on_the_command_line(call, finished_run, png_folder, monkeypatch):
    def load(run, *, allow_targets):
        raise RunError(f"allowed: {allow_targets}")

    monkeypatch.setattr(trained, "load", load)
    arguments = [finished_run, "allow_targets=[my_lab,other]", png_folder]
    assert call(*arguments)[2].strip() == "error: allowed: ['my_lab', 'other']"


MISTAKES = [
    (["{run}", "nowhere.png", "x*.png"], "error: nowhere.png: there is no such file or folder\nerror: x*.png: "),
    (["{run}", "-"], "no image was found"),
    (["{run}", __file__, "--top-k", "11"], "--top-k: 11 is out of range; it must be at least 1 and at most 10"),
    (["{run}/figures", __file__], "is not the folder of a run"),
    (["{run}", __file__, "--format", "xml"], "error: --format: invalid choice: 'xml'"),
    (["{run}"], "the following arguments are required: images"),
]


def test_mistakes_are_reported_before_tensorflow_is_imported(finished_run, tmp_path):
    lines = [[word.format(run=finished_run) for word in arguments] for arguments, _ in MISTAKES]
    for done, (_, message) in zip(refusals("predict", lines, tmp_path), MISTAKES, strict=True):
        assert done["code"] == 2 and message in done["stderr"], done
        assert "Traceback" not in done["stderr"] and done["stdout"] == "" and not done["has_tensorflow"], done
