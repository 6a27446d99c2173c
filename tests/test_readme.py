"""README.md and docs/: their commands compose, their Python runs, their links lead somewhere, their sentences are short.

    .venv/bin/python tests/test_readme.py    # count the sentences of each page

A page's blocks stand for one session in one folder: what a Python block loads is a completed run, `photos/` and the
files named like images are images, and runs are made small.
"""

import argparse
import importlib
import json
import re
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import forked
import numpy as np
import pytest
from PIL import Image

from cifar_research import config
from cifar_research.config import messages
from cifar_research.config.composition import compose
from cifar_research.config.sweep import MULTIRUN, SweepSettings, parse_command
from cifar_research.inference.exporting import export
from cifar_research.runtime.errors import ConfigError
from cifar_research.sweeps import resume, search
from cifar_research.sweeps.plan import Plan

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
MAX_MEDIAN, MAX_WORDS = 15, 35  # of the sentences of a page, in words
SMALL = ["data=synthetic", "data.train_images=100", "data.test_images=20", "training.epochs=1"]
# Modules with a command line.
COMMANDS = ("train", "evaluate", "predict", "export", "report", "cache", "preview", "convert_weights")
OTHERS = {
    "[", "bash", "cat", "cd", "cp", "curl", "done", "echo", "eval", "export", "find", "for", "git", "grep", "kill", "ls",
    "mkdir", "mlflow", "nvidia-smi", "optuna-dashboard", "pip", "python", "python3", "sbatch", "scancel", "scontrol", "scp",
    "source", "squeue", "srun", "sudo", "tar", "tensorboard", "wandb", "wsl",
}  # fmt: skip
PLACEHOLDER = "placeholder"  # stands for <…>
TAKEN_FIRST = {"--verify", "--unlock", PLACEHOLDER}  # not a part of what is composed


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the block after it on the page, or None."""

    language: str
    text: str
    after: "Block | None" = None


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """Return a page's fenced blocks, in order."""
    fences = re.findall(r"^( *)```([^\n]*)\n(.*?)^\1```", page.read_text(), re.MULTILINE | re.DOTALL)
    result = []
    for indent, language, text in reversed(fences):
        text = re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        result.insert(0, Block(language.strip(), text, result[0] if result else None))
    return result


def prose(page):
    """Return a page's text without fenced blocks and comments."""
    text = re.sub(r"^( *)```.*?^\1```[^\n]*\n?", "\n", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def lines_of(text):
    """Return the command lines of a block of bash; a backslash at the end of a line continues it."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def command_lines(page):
    """Return the command lines of a page's bash blocks, and its inline code that is a command of ours."""
    fenced = [line for block in blocks(page) if block.language == "bash" for line in lines_of(block.text)]
    spans = re.findall(r"`((?:scripts/|cifar-)[^`\n]* [^`]*)`", prose(page))
    return fenced + [" ".join(span.split()) for span in spans if "…" not in span]


def expects_error(block):
    """Return whether a block is one training command without placeholders, followed by its error."""
    is_followed = block.after is not None and block.after.language == "text" and block.after.text.startswith("error:")
    is_whole = is_followed and not re.search("…|<|resume=", block.text + block.after.text.partition(";")[0])
    return is_whole and block.language == "bash" and re.fullmatch(r"scripts/train [^\n]+\n", block.text)


REFUSED = [
    pytest.param(block.text.strip(), block.after.text.strip(), id=f"{name_of(page)}: {block.text.strip()}")
    for page in PAGES
    for block in blocks(page)
    if expects_error(block)
]
# Each once, with the first page that has it.
COMMANDS_OF_PAGES = {line: name_of(page) for page in reversed(PAGES) for line in command_lines(page)}
LINES = [
    pytest.param(line, id=f"{page}: {line}")
    for line, page in COMMANDS_OF_PAGES.items()
    if line not in {param.values[0] for param in REFUSED}
]
# Lines with a sweep of many jobs; the longest line checks every job, the others their first.
LARGE = [
    [line for line in COMMANDS_OF_PAGES if f"sweep={name}" in line]
    for name in ("perspectives", "transfer_augmentation")
]
FIRST_JOB = {line for lines in LARGE for line in lines if line != max(lines, key=len)}


def words_of(line):
    """Return the commands of a bash line, split into words, without redirections and leading variables."""
    # Placeholders: key=<value> is dropped, except for folders of data, which some options need.
    line = re.sub(r"(?<=data\.dir=)<[^<>|;&]+>", PLACEHOLDER, line)
    line = re.sub(r"(?<!\S)'?(?!resume=)[\w.+~/]+=<[^<>|;&]+>'?", "", line)
    line = re.sub(r"<[^<>|;&\n]+>", PLACEHOLDER, line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    commands, skips = [[]], False
    for word in lexer:
        if skips:
            skips = False
        elif set(word) <= set("<>&") and set(word) & set("<>"):
            skips = True
        elif set(word) <= set("|&;"):
            commands.append([])
        elif commands[-1] or not (re.match(r"\w+=", word) or word in ("do", "then")):
            commands[-1].append(word)
    return [command for command in commands if command]


def parse_train(arguments, *, every_job=True):
    """Compose what a command of training composes, and check a sweep's jobs or its first; ConfigError if it cannot work."""
    if "--from-run" in arguments:
        position = arguments.index("--from-run")
        arguments = arguments[:position] + arguments[position + 2 :]
    # "$" is of a variable of the shell.
    arguments = [word for word in arguments if word not in TAKEN_FIRST and "$" not in word]
    if any(word.startswith("resume=") for word in arguments):  # of a sweep, perhaps
        arguments = [word for word in arguments if not word.startswith(("resume=", "sweep."))]
        arguments = ["-m", *arguments] if any("," in word for word in arguments) else arguments
    if problem := messages.flags(arguments):
        raise ConfigError(problem)
    if any(word.startswith("-") and word not in MULTIRUN for word in arguments):  # --help, --cfg job
        return compose([word for word in arguments if "=" in word and not word.startswith(("-", "install="))])
    parsed = parse_command(resume.expand(arguments))
    if not isinstance(parsed, SweepSettings):
        return config.parse_composed(parsed)
    plan = Plan.of(parsed)
    if not every_job:
        swept = [override for override in plan.swept if override.is_discrete_sweep()]
        return plan.job([f"{key.get_key_element()}={next(key.sweep_string_iterator())}" for key in swept])
    return search.space(plan) if parsed.sweep.trials else plan.grid()


class Parsed(BaseException):
    """Raised to end a command once its flags are parsed."""


def parse_flags(module, arguments, monkeypatch):
    """Parse the flags of one of the other commands, which exits with code 2 if they are wrong."""

    def ends(method):
        def parse(parser, *args, **settings):
            method(parser, *args, **settings)
            raise Parsed

        return parse

    for method in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, ends(getattr(argparse.ArgumentParser, method)))
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        importlib.import_module(f"cifar_research.{module}").main()


def command_of(overrides):
    """Return the module of the package that a command runs, or None, and its arguments."""
    program, arguments = overrides[0].removeprefix(".venv/bin/"), overrides[1:]
    if program in ("python", "python3") and arguments[:1] == ["-m"] and arguments[1].startswith("cifar_research."):
        return arguments[1].removeprefix("cifar_research."), arguments[2:]
    name = program.removeprefix("scripts/").removeprefix("cifar-")
    return (name if name in COMMANDS and name != program else None), arguments


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_its_language(page):
    assert [block.text for block in blocks(page) if not block.language] == []


@pytest.mark.parametrize("line", [line for line in LINES if "searchpath" not in line.values[0]])
def test_command_works(line, monkeypatch, request, tmp_path):
    monkeypatch.chdir(tmp_path)
    for weights in re.findall(r"backbone\.weights=([\w./-]+/[\w./-]+)", line):
        (tmp_path / weights).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / weights).symlink_to(request.getfixturevalue("finished_run"))
    for overrides in words_of(line):
        module, arguments = command_of(overrides)
        if module == "train":
            parse_train(arguments, every_job=line not in FIRST_JOB)
        elif module is not None:
            with monkeypatch.context() as patch:
                parse_flags(module, arguments, patch)
        elif overrides[0].startswith("scripts/") or any(word.startswith("scripts/") for word in overrides):
            script = ROOT / next(word for word in overrides if word.startswith("scripts/"))
            assert script.is_file(), f"{script} does not exist"
            sources = "".join(path.read_text() for path in (script, *sorted((ROOT / "scripts").glob("*/*.py"))))
            flags = [word for word in overrides if word.startswith("--")] if script.name != "test" else []
            assert [flag for flag in flags if f'"{flag}"' not in sources] == []
        else:
            assert overrides[0].removeprefix(".venv/bin/") in OTHERS, f"{overrides[0]} is not a known program"


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_error_is_what_the_page_says(line, message):
    [overrides] = words_of(line)
    arguments = overrides[1:]
    try:
        parse_train(arguments)
    except ConfigError as error:
        result = str(error)
    except config.HYDRA_ERRORS as error:
        result = messages.explain(error, arguments)
    else:
        pytest.fail(f"{line} is not refused")
    assert [f"error: {text}" for text in result.splitlines()] == message.splitlines()


def write_files(page, folder):
    """Write the files that a page's blocks show: those whose first line is a comment with a file's name."""
    for block in blocks(page):
        if match := re.match(r"# (\S+\.(?:py|yaml))\n", block.text):
            path = folder / match[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(block.text[match.end() :])  # Hydra reads its own comment in the first line alone


ADDITIONS = [
    pytest.param(page, line, id=f"{name_of(page)}: {line}")
    for page in PAGES
    for line in dict.fromkeys(command_lines(page))
    if "searchpath" in line and command_of(words_of(line)[0])[0] == "train"
]
# A page's runs of one addition each, which are trained as one.
EXTENDING = ROOT / "docs" / "extending.md"
SINGLE = [param.values[1] for param in ADDITIONS if param.values[0] == EXTENDING and " -m " not in param.values[1]]


def fork_trainings():
    """Have this process begin its trainings as forks."""
    start = subprocess.Popen

    def popen(command, **settings):
        is_training = command[1:3] == ["-m", "cifar_research.train"]
        return forked.Process(command[3:]) if is_training else start(command, **settings)

    subprocess.Popen = popen


def test_additions_can_be_combined_and_train(tmp_path, monkeypatch):
    write_files(EXTENDING, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    commands = [words_of(line)[0][1:] for line in SINGLE]
    for arguments in commands:
        parse_train(arguments)
    done = forked.run([*dict.fromkeys(word for arguments in commands for word in arguments), *SMALL])
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout and (tmp_path / "runs.jsonl").exists()


@pytest.mark.parametrize(("page", "line"), [param for param in ADDITIONS if param.values[1] not in SINGLE])
def test_addition_trains(page, line, tmp_path):
    write_files(page, tmp_path)
    if (script := tmp_path / "make_body.py").exists():
        code = f"{script.read_text()}\nkeras.saving.load_model('body.keras').save_weights('body.weights.h5')"
        assert forked.run([], code=code, cwd=tmp_path).returncode == 0
    [arguments] = words_of(line)
    done = forked.run([*arguments[1:], *SMALL], cwd=tmp_path, hook=fork_trainings)
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout


# What runs before a page's Python: training, by whatever way, is made small.
PRELUDE = """
import json, sys
import cifar_research
from cifar_research import config
small = json.loads(sys.argv[1])
def with_small(function):
    return lambda overrides=(), *rest, **settings: function([*overrides, *small], *rest, **settings)
config.parse = with_small(config.parse)
cifar_research.train, cifar_research.sweep = with_small(cifar_research.train), with_small(cifar_research.sweep)
"""
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_runs(page, finished_run, tmp_path):
    texts = [block.text for block in blocks(page) if block.language == "python"]
    code = "\n".join(text for text in texts if not re.match(r"# \S+\.py\n", text))
    write_files(page, tmp_path)
    for module in tmp_path.glob("*.py"):
        compile(module.read_text(), module.name, "exec")
    if not code.strip():
        return
    make_folder(code, finished_run, tmp_path)
    done = forked.run([json.dumps(SMALL)], code=f"{PRELUDE}\n{code}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def make_folder(code, finished_run, folder):
    """Make what a page's Python names: completed runs in outputs/, folders of images, and image files."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    names = [f"photos/{number}.png" for number in range(3)]
    names += [f"pets/{label}/{number}.png" for label in ("cat", "dog") for number in range(20)]
    for text in re.findall(r"""["']([^"'\s*{}]+)["']""", code):
        if re.search(r"\.(jpe?g|png|webp)$", text) and not text.startswith(("outputs/", "/")):
            names.append(text)
    for text in set(re.findall(r"""(?<!saved_model\.)load\(["']([^"']+)["']""", code)):
        shutil.copytree(finished_run, folder / text)
    for name, kind in (("model.onnx", "onnx"), ("model.tflite", "litert"), ("saved_model", "saved_model")):
        if name in code:
            export(finished_run, kind, output=folder)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def without_code(text):
    return re.sub(r"(`+)(?:(?!`).)*?\1", "code", text, flags=re.DOTALL)


def anchors(page):
    """Return the anchors of a page's headings, as GitHub names them."""
    result = set()
    for heading in re.findall(r"^#+ (.+?)\s*$", prose(page), re.MULTILINE):
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", "")).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in result:
            number += 1
        result.add(anchor)
    return result | set(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text()))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_somewhere(page):
    dead = []
    targets = re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", without_code(prose(page)))
    for target in targets:
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = page.parent / path if path else page
        is_dead = not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file))
        if is_dead or not file.resolve().is_relative_to(ROOT):
            dead.append(target)
    assert dead == []


def test_every_page_can_be_reached():
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)", prose(page))
    }
    assert [name_of(page) for page in PAGES[1:] if page.resolve() not in linked] == []


def test_every_option_is_in_the_table():
    for group in sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        row = re.search(rf"^\| `{group.name}` \|(.*)$", README.read_text(), re.MULTILINE).group(1)
        assert set(re.findall(r"`(\w+)`", row.split("|")[0])) == {path.stem for path in group.glob("*.yaml")}


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1100


def test_the_figure_is_drawn_from_the_measurements():
    drawing = runpy.run_path(str(ROOT / "scripts" / "readme_figure"))["drawing"]()
    assert drawing == (ROOT / "docs" / "time_to_accuracy.svg").read_text(), "run scripts/readme_figure"


def sentences(page):
    """Return a page's sentences outside of code, tables, headings and pictures; an inline piece of code is one word."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", without_code(prose(page)))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("et al.", "et al")
    text = re.sub(r"^(#|\||\s*\|).*$", "", text, flags=re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |> ))", text)
    result = []
    for paragraph in paragraphs:
        line = " ".join(re.sub(r"^\s*(?:[-*]|\d+\.|>) ", "", paragraph).split())
        result += re.split(r"(?<=[.!?])[*»)\"]*\s+(?=[^a-z\s])", line)
    return [sentence for sentence in result if count(sentence)]


def count(sentence):
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


COUNTED = [README, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", COUNTED, ids=name_of)
def test_sentences_are_short(page):
    counts = [count(sentence) for sentence in sentences(page)]
    assert statistics.median(counts) <= MAX_MEDIAN
    assert [sentence for sentence in sentences(page) if count(sentence) > MAX_WORDS] == []


def summary():
    """Return a table of the pages: their lines, words and sentences, and how long these are."""
    rows = [f"{'page':<28}{'lines':>7}{'words':>7}{'sentences':>11}{'median':>8}{'longest':>9}"]
    every = []
    for page in COUNTED:
        text, counts = page.read_text(), [count(sentence) for sentence in sentences(page)]
        every += counts
        shown = (len(text.splitlines()), len(text.split()), len(counts), statistics.median(counts), max(counts))
        rows.append("{:<28}{:>7}{:>7}{:>11}{:>8g}{:>9}".format(name_of(page), *shown))
    rows.append(f"{'all':<42}{len(every):>11}{statistics.median(every):>8g}{max(every):>9}")
    return "\n".join(rows)


if __name__ == "__main__":
    print(summary())
