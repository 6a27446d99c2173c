"""Data sets: found, read in every layout, split, cached, or rejected with their path."""

import dataclasses
import hashlib
import io
import logging
import multiprocessing
import os
import pickle
import shutil
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from cifar_research import config
from cifar_research.data import cache, cifar, datasets
from cifar_research.runtime import folders
from cifar_research.runtime.errors import DataError

PER_BATCH = 20


def arrays(num_images, num_classes, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_images, 3072), dtype=np.uint8), np.arange(num_images) % num_classes


def members(name):
    """Return ({member: bytes} pickled, the same raw) of a small data set of this name, the same images in both layouts."""
    pickled, raw = cifar.LAYOUTS[name]
    fine = name == "cifar100"
    num_classes = 100 if fine else 10
    result = ({}, {})
    for number, (py, binary) in enumerate(zip(pickled.md5, raw.md5, strict=True)):
        rows, labels = arrays(100 if fine else PER_BATCH, num_classes, number)
        keys = (
            {b"fine_labels": labels.tolist(), b"coarse_labels": [0] * len(labels)}
            if fine
            else {b"labels": labels.tolist()}
        )
        result[0][py] = pickle.dumps({b"data": rows, **keys}, protocol=2)
        prefix = np.stack([np.zeros_like(labels), labels], 1) if fine else labels[:, None]
        result[1][binary] = np.concatenate([prefix.astype(np.uint8), rows], axis=1).tobytes()
    names = [f"class {i:02}" for i in range(num_classes)]
    key = b"fine_label_names" if fine else b"label_names"
    result[0][pickled.names] = pickle.dumps({key: [n.encode() for n in names]}, protocol=2)
    result[1][raw.names] = "\n".join([*names, ""]).encode()
    return result


def lay_out(root, name, which, archive):
    """Write the data set as a folder or an archive; return where."""
    layout = cifar.LAYOUTS[name][which]
    contents = members(name)[which]
    root.mkdir(parents=True, exist_ok=True)
    if not archive:
        (root / layout.folder).mkdir()
        for member, content in contents.items():
            (root / layout.folder / member).write_bytes(content)
        return root / layout.folder
    with tarfile.open(root / layout.archive, "w:gz") as tar:
        for member, content in contents.items():
            entry = tarfile.TarInfo(f"{layout.folder}/{member}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return root / layout.archive


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("CIFAR_DATA_DIR", raising=False)


def load(*overrides):
    return datasets.load(config.parse([*overrides, "data.download=false"]).data)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_every_published_layout_gives_the_same_images(tmp_path, name, which, archive):
    lay_out(tmp_path / "data", name, which, archive)
    data = load(f"data={name}", f"data.dir={tmp_path / 'data'}", "data.val_fraction=0.5")
    num_batches, per_batch = (1, 100) if name == "cifar100" else (5, PER_BATCH)
    rows, labels = arrays(per_batch, len(data.classes), 0)
    np.testing.assert_array_equal(data.train.images[:per_batch], rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(data.train.labels[:per_batch], labels)
    assert len(data.train.images) == num_batches * per_batch and len(data.test) == per_batch
    assert data.classes[3] == "class 03" and len(data.classes) == (100 if name == "cifar100" else 10)
    assert "not the published" in data.note or "unverified" in data.note
    rows, _ = arrays(per_batch, len(data.classes), num_batches)
    np.testing.assert_array_equal(data.test.images[5].transpose(2, 0, 1).ravel(), rows[5])


def test_published_checksums_leave_no_note(tmp_path, monkeypatch):
    folder = lay_out(tmp_path / "data", "cifar10", 0, archive=False)
    layout = cifar.LAYOUTS["cifar10"][0]
    md5 = {member: hashlib.md5((folder / member).read_bytes()).hexdigest() for member in layout.md5}
    genuine = dataclasses.replace(layout, md5=md5)
    monkeypatch.setitem(cifar.LAYOUTS, "cifar10", (genuine, cifar.LAYOUTS["cifar10"][1]))
    assert load(f"data.dir={tmp_path / 'data'}").note is None


def test_found_in_the_order_that_is_promised(tmp_path, monkeypatch):
    for path in ("given", "environment", "keras/datasets", "cache/data"):
        lay_out(tmp_path / path, "cifar10", 0, archive=False)
    root = folders.root(None)

    def where(data_dir=None, found_in=None):
        return cifar.locate("cifar10", data_dir, root, False, found_in and str(found_in))[1].parent

    assert where() == tmp_path / "cache/data"
    monkeypatch.setenv("CIFAR_DATA_DIR", str(tmp_path / "environment"))
    assert where() == tmp_path / "environment"
    assert where(str(tmp_path / "given")) == tmp_path / "given"
    assert where(str(tmp_path / "given" / "cifar-10-batches-py")) == tmp_path / "given"
    assert where(None, tmp_path / "cache/data/cifar-10-batches-py") == tmp_path / "environment"
    monkeypatch.delenv("CIFAR_DATA_DIR")
    assert where(None, tmp_path / "given/cifar-10-batches-py") == tmp_path / "given"
    shutil.rmtree(tmp_path / "cache/data")
    assert where() == tmp_path / "keras/datasets"


def test_a_folder_of_images_is_not_taken_for_a_place_to_download_to(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "pets" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "train" / "cat" / "1.jpg").touch()
    with pytest.raises(DataError, match="pets holds folders of images, .* add data=images"):
        cifar.locate("cifar10", str(tmp_path / "pets"), tmp_path, download=True)


def test_nothing_found_says_where_it_looked_and_touches_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "fetch", lambda *args: pytest.fail("the network was asked"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data\.dir.*empty.*cifar-10-batches-py.*data\.download=true"):
        load(f"data.dir={tmp_path / 'empty'}")


class Gadget:
    def __reduce__(self):
        return os.mkdir, ("/tmp/cifar_research_gadget",)


@pytest.mark.parametrize("damage", ["truncated", "gadget", "missing", "labels", "rubbish", "empty"])
@pytest.mark.parametrize("which", [0, 1])
def test_damaged_batches_are_refused_with_their_path(tmp_path, damage, which):
    folder = lay_out(tmp_path / "data", "cifar10", which, archive=False)
    victim = folder / cifar.LAYOUTS["cifar10"][which].members[2]
    content = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    elif damage == "gadget":
        victim.write_bytes(pickle.dumps({b"data": Gadget(), b"labels": [0]}))
    elif damage == "labels":
        batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 77]}
        victim.write_bytes(pickle.dumps(batch) if which == 0 else bytes([77]) + bytes(3072))
    else:
        victim.write_bytes({"truncated": content[:-100], "rubbish": b"rubbish", "empty": b""}[damage])
    with pytest.raises(DataError, match=victim.name):
        load(f"data.dir={tmp_path / 'data'}")
    assert not os.path.exists("/tmp/cifar_research_gadget")
    assert not list((tmp_path / "cache").glob("cifar10-*/meta.json"))


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.99])
def test_truncated_archive_is_refused_and_the_cache_stays(tmp_path, share):
    archive = lay_out(tmp_path / "data", "cifar10", 1, archive=True)
    load(f"data.dir={tmp_path / 'data'}")
    cached = sorted(path for path in (tmp_path / "cache").rglob("*.npy"))
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=archive.name):
        load(f"data.dir={tmp_path / 'data'}")
    assert sorted(path for path in (tmp_path / "cache").rglob("*.npy")) == cached


def test_second_load_reads_the_cache_and_a_damaged_one_is_rebuilt(tmp_path, monkeypatch, caplog):
    lay_out(tmp_path / "data", "cifar10", 0, archive=False)
    first = load(f"data.dir={tmp_path / 'data'}")
    with monkeypatch.context() as patch:
        patch.setattr(cifar, "_decode", lambda *args: pytest.fail("decoded again"))
        again = load(f"data.dir={tmp_path / 'data'}")
    assert isinstance(again.train.images, np.memmap) and again.fingerprint == first.fingerprint
    victim = next((tmp_path / "cache").rglob("train_images.npy"))
    content = bytearray(victim.read_bytes())
    content[-7] ^= 1
    del first, again
    victim.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        repaired = load(f"data.dir={tmp_path / 'data'}")
    assert "damaged" in caplog.text and str(victim.parent) in caplog.text
    np.testing.assert_array_equal(repaired.train.images[0].transpose(2, 0, 1).ravel(), arrays(PER_BATCH, 10, 0)[0][0])


def _load_counted(folder, decoded, barrier):
    def decode():
        with open(decoded, "a") as file:
            file.write("x")
        time.sleep(0.3)
        images = np.zeros((4, 8, 8, 3), np.uint8)
        return cache.Source(dict.fromkeys(("train", "test"), (images, np.arange(4))), ("a", "b", "c", "d"))

    barrier.wait()
    cache.load(folder, "some", [1], decode)


def test_two_processes_make_one_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    decoded = tmp_path / "decoded"
    processes = [context.Process(target=_load_counted, args=(tmp_path / "cache", decoded, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert decoded.read_text() == "x"


def synthetic(*overrides):
    size = ["data.train_images=500", "data.test_images=100"]
    return datasets.load(config.parse(["data=synthetic", *size, *overrides]).data)


def test_splits_are_stratified_and_fixed_by_their_own_seed():
    data = synthetic("data.val_fraction=0.2")
    assert (len(data.train), len(data.val), len(data.test)) == (400, 100, 100)
    assert not set(data.train.indices) & set(data.val.indices)
    assert np.bincount(data.val.labels[data.val.indices]).tolist() == [10] * 10
    np.testing.assert_array_equal(synthetic("data.val_fraction=0.2", "seed=7").val.indices, data.val.indices)
    assert (synthetic("data.val_fraction=0.2", "data.split_seed=1").val.indices != data.val.indices).any()


def test_train_size_is_a_stratified_subset_that_spares_validation():
    data, whole = synthetic("data.train_size=105"), synthetic()
    assert len(data.train) == 105 and set(data.train.indices) <= set(whole.train.indices)
    np.testing.assert_array_equal(data.val.indices, whole.val.indices)
    counts = np.bincount(data.train.labels[data.train.indices])
    assert counts.min() >= 10 and counts.max() <= 11
    with pytest.raises(DataError, match=r"data\.train_size.*450"):
        synthetic("data.train_size=451")


def test_validation_on_the_test_set_is_in_the_note():
    data = synthetic("data.validation=test")
    assert len(data.train) == 500 and data.val is data.test and len(data.test) == 100
    assert "validated on the test set" in data.note


def test_channel_statistics():
    train = synthetic().train
    pixels = train.images[train.indices].astype(np.float64).reshape(-1, 3) / 255
    mean, deviation = train.channel_statistics()
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviation, pixels.std(0), rtol=1e-5)


def write_images(folder, count=10, size=(40, 20), suffixes=(".png", ".jpg"), shade=0):
    folder.mkdir(parents=True)
    for i in range(count):
        colour = (shade, 10 * i, 200)
        Image.new("RGB", size, colour).save(folder / f"{i}{suffixes[i % len(suffixes)]}")


def images(folder, *overrides):
    return datasets.load(config.parse(["data=images", f"data.dir={folder}", *overrides]).data)


def test_image_folders_with_their_own_test_images(tmp_path):
    for part, count in (("train", 10), ("test", 4)):
        write_images(tmp_path / "pets" / part / "cat", count)
        write_images(tmp_path / "pets" / part / "dog", count, shade=250)
    data = images(tmp_path / "pets", "data.image_size=24")
    assert data.classes == ("cat", "dog") and data.train.images.shape[1:] == (24, 24, 3)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 8)
    assert data.test.images[data.test.labels == 1][:, :, :, 0].min() > 200


def test_one_image_folder_is_split_by_a_fraction(tmp_path):
    write_images(tmp_path / "pets" / "cat", 10)
    write_images(tmp_path / "pets" / "dog", 20)
    data = images(tmp_path / "pets", "data.test_fraction=0.2", "data.val_fraction=0")
    assert np.bincount(data.test.labels).tolist() == [2, 4] and len(data.train) == 24
    write_images(tmp_path / "pets" / "train", 5)  # a class
    (tmp_path / "pets" / "train" / "old").mkdir()
    assert images(tmp_path / "pets").classes == ("cat", "dog", "train")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "train" / "fish").mkdir(), r"fish: has no readable image"),
        (lambda root: write_images(root / "test" / "fish"), r"'fish' is in test/ and not in train/; give both"),
        (lambda root: write_images(root / "train" / "fish"), r"'fish' is in train/ and not in test/; give both"),
        (lambda root: root.rename(root.parent / "elsewhere"), r"data\.dir.*pets"),
        (lambda root: shutil.rmtree(root / "test"), r"data\.dir: .* has train/.*pets/train, which holds out"),
        (lambda root: shutil.rmtree(root / "train"), r"data\.dir: .* has test/, which looks like a split"),
        (lambda root: shutil.rmtree(root / "test" / "cat"), r"test: has 1 class folder, and two are needed"),
        (
            lambda root: (root / "train" / "data_batch_1").touch(),
            r"train has the files of cifar10 .*; use data=cifar10",
        ),
        (lambda root: (root / "test" / "train").touch(), r"test has the files of cifar100 .*; use data=cifar100"),
        (lambda root: (root / "train" / "cifar-10-batches-py").mkdir(), r"train has the files of cifar10 .*"),
    ],
)
def test_bad_image_folders_are_refused_with_the_path(tmp_path, break_it, message):
    for part in ("train", "test"):
        write_images(tmp_path / "pets" / part / "cat")
        write_images(tmp_path / "pets" / part / "dog")
    break_it(tmp_path / "pets")
    with pytest.raises(DataError, match=message):
        images(tmp_path / "pets")


def test_every_class_is_trained_validated_and_tested(tmp_path):
    for name, count in (("cat", 2), ("dog", 30), ("fish", 3)):
        write_images(tmp_path / "pets" / name, count)
    data = images(tmp_path / "pets", "data.test_fraction=0.9", "data.val_fraction=0.1")
    assert np.bincount(data.test.labels).tolist() == [1, 27, 2]
    assert set(data.train.labels[data.train.indices]) == {0, 1, 2}
    write_images(tmp_path / "pets" / "bird", 1)
    with pytest.raises(DataError, match="bird.*needs at least 2 readable images for training and test, and has 1"):
        images(tmp_path / "pets")


def test_odd_names_and_pipes_in_a_folder_of_images(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / "pets" / name)
    os.mkfifo(tmp_path / "pets" / "dog" / "pipe.png")
    data = images(tmp_path / "pets", "data.test_fraction=0.5")
    assert len(data.train) + len(data.val) + len(data.test) == 20
    os.mkdir(os.fsencode(tmp_path / "pets") + b"/caf\xe9")
    with pytest.raises(DataError, match="is not UTF-8; rename it"):
        images(tmp_path / "pets")


def test_unwritable_cache_says_which_key_to_change(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        datasets.load(config.parse(["data=synthetic", f"data.cache_dir={tmp_path / 'file' / 'below'}"]).data)


CLASSES = ["data=synthetic", "data.train_images=300", "data.test_images=100"]


def test_classes_are_chosen_in_the_order_given():
    whole = datasets.load(config.parse(CLASSES).data)
    first, second = whole.classes[7], whole.classes[2]
    some = datasets.load(config.parse([*CLASSES, f"data.classes=[{first},{second}]"]).data)
    assert some.classes == (first, second) and some.fingerprint == whole.fingerprint
    for name in ("train", "val", "test"):
        every, chosen = getattr(whole, name), getattr(some, name)
        rows = [i for i in every.indices if every.labels[i] in (7, 2)]
        assert list(chosen.indices) == rows
        assert [chosen.labels[i] for i in rows] == [[7, 2].index(every.labels[i]) for i in rows]
    few = datasets.load(config.parse([*CLASSES, f"data.classes=[{first},{second}]", "data.train_size=10"]).data)
    assert sorted(few.train.labels[few.train.indices]) == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("chosen", "part"),
    [("[shp,circle]", "there is no class 'shp'"), ("[{0}]", "two or more"), ("[{0},{0}]", "different")],
)
def test_bad_classes_are_named(chosen, part):
    whole = datasets.load(config.parse(CLASSES).data)
    with pytest.raises(DataError, match=part):
        datasets.load(config.parse([*CLASSES, f"data.classes={chosen.format(whole.classes[0])}"]).data)
