"""Wrong command lines and files are rejected with a message: hand-written, generated and random ones."""

import contextlib
import hashlib
import io
import json
import pickle
import tarfile
import time
import zlib

import forked
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cifar_research import config
from cifar_research.config.identity import PLUGIN_GROUPS, flatten
from cifar_research.data import cache, cifar, images
from cifar_research.runs import checkpoint, ledger, report
from cifar_research.runs.ledger import LEDGER
from cifar_research.runtime import files
from cifar_research.runtime.errors import CheckpointError, ConfigError, DataError, ImageError, ReportError
from cifar_research.sweeps import resume

SECONDS = 3  # for one mistake
OURS = (ConfigError, DataError, ImageError, CheckpointError, ReportError)


def generated(examples):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=SECONDS * 1000, derandomize=True, database=None,
                    suppress_health_check=checks)  # fmt: skip


# ---- command lines ----

KEYS = [key for key in flatten(config.parse(["augmentation=strong", "schedule=cosine"]).content) if key != "name"]
GROUPS = (*PLUGIN_GROUPS, "data", "augmentation", "training", "experiment", "sweep")
values = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=12), st.lists(st.integers(), max_size=3),
    st.sampled_from(["", "''", "[", "{", "{a:1}", "[[1]]", "${seed}", "${oc.env:NOPE}", "${", "???", "1e999", "-0", "nan",
                     "inf", "0x10", "1_000", "a,b", "range(1,3)", "'", "\\", "$", "@", "é", "\x00", "null", "~", "*"]),
)  # fmt: skip
overrides = st.one_of(
    st.tuples(st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(KEYS), values).map(
        lambda result: f"{result[0]}{result[1]}={result[2]}"
    ),
    st.tuples(st.sampled_from(GROUPS), values).map(lambda result: f"{result[0]}={result[1]}"),
    st.tuples(st.text(max_size=12), values).map(lambda result: f"{result[0]}={result[1]}"),
    st.text(max_size=20),
)


@generated(150)
@given(st.lists(overrides, min_size=1, max_size=3))
def test_a_generated_command_line_works_or_is_refused(given_words):
    try:
        config.parse(given_words)
    except ConfigError as error:
        assert str(error).strip() and "Traceback" not in str(error)


YAML = [
    "", "[]", "3", "a: [1", "\t- x", "name: &a [*a]", "training: 3", "training: {epochs: ten}", "training: []",
    "backbone: {_target_: 3}", "backbone: {_target_: [a]}", "backbone: null", "augmentation: [1, 2]", "defaults: 3",
    "defaults: [nowhere]", "defaults: [{backbone: nowhere}]", "defaults: [experiment: theirs]", "? [a]\n: b",
    "training: {phases: {a: null}}", "training: {phases: {a: 3}}", "training: {phases: {}}", "name: ${nowhere}",
    "name: ${name}", "data: {classes: 3}", "optimizer: {learning_rate: {a: 1}}", "optimizer: ${optimizer}",
    "schedule: {warmup_epochs: .nan}", "backbone: {filters: [[1]]}", "!!python/object/apply:os.system ['true']",
    "a: !!python/name:os.system", "\x00", "name: \ud800", "- training", "training: {epochs: 1e400}",
    "backbone: {filters: [1e3]}", "hydra: 3", "hydra: {run: 3}", "hydra: {job_logging: 3}", "hydra: {callbacks: 3}",
    "hydra: {mode: SIDEWAYS}", "allow_targets: {a: b}", "1: 2", "true: 3", "training.epochs: 3", "name: 3\nname: 4",
    "seed: 1e3", "seed: 0x1p3", "name: '${oc.decode:[}'", "model: {hidden: '${backbone.filters}'}",
    "augmentation: {flip: {p: ${augmentation}}}",
]  # fmt: skip


@pytest.mark.parametrize("text", YAML, ids=lambda text: ascii(text)[:40])
def test_a_preset_of_whatever_kind_works_or_is_refused(tmp_path, text):
    (tmp_path / "experiment").mkdir()
    path = tmp_path / "experiment" / "theirs.yaml"
    path.write_bytes(f"# @package _global_\n{text}\n".encode(errors="surrogatepass"))
    began = time.monotonic()
    try:
        config.parse([f"hydra.searchpath=[file://{tmp_path}]", "experiment=theirs"])
    except ConfigError as error:
        assert str(error).strip() and "Traceback" not in str(error)
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize(
    "line",
    [
        ["training.epochs=ten"], ["nothing"], ["="], ["a=b=c"], ["resume="], ["resume=/dev/null"], ["-m", "loss=a"], ["--nothing"],
        ["optimizer=adam,sgd"], ["hydra.run.dir="], ["hydra.run.dir=/dev/null/x"], ["data=images", "data.dir=/dev/null"],
        ["data.dir=\udcff"], ["--from-run=/dev/null"], ["-m", "seed=1,,2"], ["experiment="], ["hydra.mode=X"], ["--cfg"],
    ],
    ids=ascii,
)  # fmt: skip
def test_the_real_command_line_is_refused_in_a_sentence(tmp_path, line):
    more = ["data.download=false"] if "-" not in line[0][:1] else []
    done = forked.run([*line, *more], cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout, done.stderr
    assert "error" in done.stderr


# ---- files, by readers ----


def batch():
    rows = np.zeros((2, 3072), np.uint8)
    return pickle.dumps({b"data": rows, b"labels": [0, 1]}, protocol=2)


def archive():
    buffer, layout = io.BytesIO(), cifar.LAYOUTS["cifar10"][0]
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in layout.members:
            entry = tarfile.TarInfo(f"{layout.folder}/{member}")
            entry.size = len(batch())
            tar.addfile(entry, io.BytesIO(batch()))
    return buffer.getvalue()


def picture(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, kind)
    return buffer.getvalue()


def saved():
    buffer = io.BytesIO()
    meta = np.frombuffer(json.dumps({"step": 1, "best": None}).encode(), np.uint8)
    np.savez(buffer, **{"meta.json": meta, "w": np.ones(3, np.float32)})
    return buffer.getvalue()


def sealed_checkpoint(payload):
    """Return a checkpoint with harmful content and a valid checksum."""
    return checkpoint.MAGIC + hashlib.sha256(payload).digest() + payload


ROW = dict.fromkeys(report.HISTORY_COLUMNS, 1) | {"phase": "scratch"}
LAYOUT = cifar.LAYOUTS["cifar10"]


def read_cifar(parse, num_classes):
    return lambda path: cifar.parsed(parse, path.read_bytes(), str(path), num_classes)


def read_image(path):
    images.decode(path, 8)


def read_cache(path):
    """Read a cache; ValueError if it is damaged, which `load_arrays` handles."""
    folder = path.with_suffix(".cache")
    folder.mkdir(exist_ok=True)
    content = path.read_bytes()
    (folder / "a.npy").write_bytes(content)
    facts = {"files": {"a": {"bytes": len(content), "crc32": zlib.crc32(content)}}}
    (folder / "meta.json").write_bytes(files.dumps(facts))
    with contextlib.suppress(ValueError):
        cache._read(folder)
    (folder / "meta.json").write_bytes(content)
    with pytest.raises(ValueError):
        cache._read(folder)


def read_sealed_meta(path):
    """Read a cache whose facts are replaced by another mapping with a valid checksum."""
    folder = path.with_suffix(".facts")
    folder.mkdir(exist_ok=True)
    (folder / "meta.json").write_bytes(files.dumps({"files": list(path.read_bytes()[:20])}))
    with pytest.raises(ValueError):
        cache._read(folder)


def read_run(path):
    """Read what Hydra saves beside a run."""
    (path.parent / ".hydra").mkdir(exist_ok=True)
    for name in ("overrides.yaml", "hydra.yaml"):
        (path.parent / ".hydra" / name).write_bytes(path.read_bytes())
    resume.expand([f"resume={path.parent}"])


def read_ledger(path):
    (path.parent / LEDGER).write_bytes(path.read_bytes())
    try:
        ledger.read(path.parent)
    finally:
        (path.parent / LEDGER).unlink()


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(12, dtype=np.uint8).reshape(3, 4))
    return buffer.getvalue()


LEDGER_LINES = "".join(json.dumps(line) + "\n" for line in [
    {"arguments": ["seed=1"]},
    {"folder": "a", "overrides": ["seed=1"], "config": {"augmentation": {}, "data": {}}},
    {"folder": "a", "state": "running", "reason": None, "attempts": 1}]).encode()  # fmt: skip
HISTORY = (",".join(report.HISTORY_COLUMNS) + "\n" + ",".join(map(str, ROW.values())) + "\n").encode()
REPORT = files.dumps({"status": "completed", "config": {"augmentation": {}}})
READERS = {
    "raw rows": (read_cifar(cifar._split_rows, 10), bytes(3073)),
    "pickle": (read_cifar(cifar._unpickle_batch, 10), batch()),
    "class names": (read_cifar(cifar._split_names, 2), b"cat\ndog\n"),
    "archive": (lambda path: cifar._unpack(LAYOUT[0], path), archive()),
    "PNG": (read_image, picture("PNG")),
    "JPEG": (read_image, picture("JPEG")),
    "checkpoint": (checkpoint.read, sealed_checkpoint(saved())),
    "checkpoint with a right checksum": (checkpoint.read, saved()),
    "cache": (read_cache, npy()),
    "facts of a cache": (read_sealed_meta, b"abc"),
    "report": (report.read_report, REPORT),
    "history": (report.read_history, HISTORY),
    "ledger": (read_ledger, LEDGER_LINES),
    "run": (read_run, b"- seed=1\n"),
}


def mutated(content):
    """Strategies for bytes: random, random after a valid beginning, a valid file with a few bytes changed."""
    changes = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=4)

    def change(result):
        damaged = bytearray(content)
        for path, value in result:
            damaged[path] = value
        return bytes(damaged)

    cut = st.integers(0, len(content)).flatmap(
        lambda end: st.binary(max_size=40).map(lambda more: content[:end] + more)
    )
    return st.one_of(st.binary(max_size=300), cut, changes.map(change))


@pytest.mark.parametrize("name", READERS)
def test_a_reader_lets_out_only_errors_of_our_own(name, tmp_path):
    read, content = READERS[name]
    path = tmp_path / "file"
    wrap = sealed_checkpoint if "right checksum" in name else bytes
    kinds = []

    @generated(200)
    @given(mutated(content))
    def fuzz(damaged):
        path.write_bytes(wrap(damaged))
        try:
            read(path)
        except OURS as error:
            kinds.append(type(error))
            assert str(error).strip()

    path.write_bytes(wrap(content))
    if name not in ("class names", "run"):  # the one file is good, or half of what there has to be
        read(path)
    fuzz()
    assert kinds or "cache" in name


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_what_is_nested_too_deeply_is_refused(tmp_path, depth):
    deep = b"[" * depth + b"]" * depth
    for name in ("report", "ledger", "run", "checkpoint with a right checksum"):
        payload = deep
        if "checkpoint" in name:
            buffer = io.BytesIO()
            np.savez(buffer, **{"meta.json": np.frombuffer(deep, np.uint8)})
            payload = sealed_checkpoint(buffer.getvalue())
        (tmp_path / "file").write_bytes(payload)
        with pytest.raises(OURS):
            READERS[name][0](tmp_path / "file")
