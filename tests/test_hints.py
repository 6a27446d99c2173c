"""The hints in messages work when a user types them."""

import re
import shlex

import pytest

from cifar_research import config
from cifar_research.config.sweep import SweepSettings, parse_command
from cifar_research.runtime.errors import ConfigError
from cifar_research.sweeps import plan

# A wrong command line as typed, and the words that must be among its message's hints.
WRONG = [
    ("lr=0.1", ["optimizer.learning_rate=0.1"]),
    ("+lr=0.1", ["optimizer.learning_rate=0.1"]),
    ("optimizer.lr=0.1", ["optimizer.learning_rate=0.1"]),
    ("optim.lr=0.1", ["optimizer.learning_rate=0.1"]),
    ("training.learning_rate=0.1", ["optimizer.learning_rate=0.1"]),
    ("epochs=3", ["training.epochs=3"]),
    ("epoch=3", ["training.epochs=3"]),
    ("trainig.epochs=3", ["training.epochs=3"]),
    ("training.epoch=3", ["training.epochs=3"]),
    ("+training.batchsize=64", ["training.batch_size=64"]),
    ("bs=64", ["training.batch_size=64"]),
    ("batch_size=64", ["training.batch_size=64"]),
    ("dropout=0.3", ["backbone.dropout=0.3", "model.dropout=0.3"]),
    ("filters=[8,8]", ["backbone.filters=[8,8]"]),
    ("sead=1", ["seed=1"]),
    ("optimiser=sgd", ["optimizer=sgd"]),
    ("scheduler=cosine", ["schedule=cosine"]),
    ("dataset=synthetic", ["data=synthetic"]),
    ("optimizer.momentum=0.8", ["optimizer=muon", "optimizer=rmsprop", "optimizer=sgd"]),
    ("optimizer=sgd optimizer.momentom=0.8", ["optimizer.momentum=0.8"]),
    ("data.train_images=99", ["data=synthetic"]),
    ("augmentation=flip augmentation.flip.probability=1", ["augmentation.horizontal_flip.probability=1"]),
    ("augmentation.rotation.degrees=30", ["augmentation=rotation"]),
    ("augmentation=horizontal_flip", ["augmentation=flip"]),
    ("augmentation=[shift,hflip]", ["augmentation=flip"]),
    ("augmentation=random_crop", ["augmentation=crop"]),
    ("loss=mse", ["loss=mean_squared_error"]),
    ("loss=cross_entropy", ["loss=categorical_crossentropy"]),
    ("loss=crossentropy", ["loss=categorical_crossentropy"]),
    ("loss=ce", ["loss=categorical_crossentropy"]),
    ("schedule=cos", ["schedule=cosine"]),
    ("optimizer=sdg", ["optimizer=sgd"]),
    ("optimizer=SGD", ["optimizer=sgd"]),
    ("model=resnet50", ["backbone=resnet50"]),
    ("backbone=vgg16 training=finetune", ["training=fine_tuning"]),
    ("training.precision=bf16", ["training.precision=bfloat16"]),
    ("hydra.run.dirr=x", ["hydra.run.dir=x"]),
    ("-m hydra.launcher.job=3", ["hydra.launcher.jobs=3"]),
    ("name=1,2", ["name='1,2'"]),
    ("+training.phases.b.epochs=3", ["++training.phases={b:{trainable:all}}"]),
    ("data.classes=cat", ["data.classes=[cat]"]),
    ("data.classes=true", ["data.classes=['true']"]),
    ("name=bücher", ["name='bücher'"]),
    ('"name=a!ü"', ["name='a!ü'"]),
    ('"hydra.run.dir=/tmp/it\'s"', ["hydra.run.dir='/tmp/it\\'s'"]),
    ("backbone=vgg16 training=combined training.phases.head=null", ["~training.phases.head"]),
    ("experiment=fast optimizer=adam", ["~optimizer.other_scale"]),
    ("seed=1,2", ["-m"]),
    ("data.classes=cat,dog", ["data.classes=[cat,dog]"]),
    ("optimizer.learning_rate=0.1,0.2", ["-m"]),
    ("augmentation=flip,shift", ["-m", "augmentation=[flip,shift]"]),
    ("'optimizer=glob(*)'", ["-m"]),
    ("hydra/launcher=slurm", ["-m", "hydra/launcher=local"]),
    ("hydra.launcher.jobs=2", ["-m"]),
    ("sweep.retries=2", ["-m"]),
    ("training=feature_extraction", ["training=scratch"]),
    ("backbone=vgg16 backbone.weights=none training=combined", ["backbone.weights=imagenet", "training=scratch"]),
]
# What the message of some of them must contain besides, $ at its end.
MESSAGES = {
    "training.epoch=3": ["training.epoch", "epochs"],
    "+training.phases.b.epochs=3": ["training.phases.b.epochs:", '"++training.phases={b:{trainable:all}}"'],
    "training.precision=bf16": ["training.precision", "bf16", "did you mean 'bfloat16'"],
    "trainig.epochs=3": ["trainig", "training"],
    "experiment=fast optimizer=adam": ["optimizer.other_scale", "remove it with ~optimizer.other_scale"],
    "sead=1": ["sead", "seed"],
    "loss=mse": ["loss", "mse", "mean_squared_error"],
    "name=bücher": ["name: 'bücher' needs quotes", """give "name='bücher'\""""],
    '"name=a!ü"': ["name: 'a!ü' needs quotes", """give 'name='"'"'a!ü'"'"''"""],
    "seed=1,2": ["seed: 1,2 are several values; for a sweep add -m$"],
    "+training.batchsize=64": ["training.batchsize", "did you mean training.batch_size=64?"],
    "augmentation.rotation.degrees=30": ["augmentation.rotation.degrees", "augmentation=rotation"],
    "augmentation=flip augmentation.flip.probability=1": ["did you mean augmentation.horizontal_flip.probability=1?"],
}


def refusal(overrides):
    """Return the message if a command line is rejected before anything is written, None if it is accepted."""
    try:
        parsed = parse_command(overrides)
        if isinstance(parsed, SweepSettings):
            plan.Plan.of(parsed).grid()
        else:
            config.parse_composed(parsed)
    except ConfigError as error:
        return str(error)
    return None


def hints(message):
    """Return the overrides that a message suggests, as a shell passes them on."""
    remedy = message[message.index(";") :] if ";" in message else message.partition(": ")[2]
    name = message.partition(":")[0]
    suggested = [f"{name}={value}" for value in re.findall(r"did you mean '([^']*)'", remedy)]
    for part in re.findall(r"\"\S*=(?:[^\"\\]|\\.)*\"|'\S*=.*'(?=$|;)|[+~]*[\w./]+=[^\s\"?;]+|~[\w.]+|-m\b", remedy):
        if not part.startswith("=") and not part.endswith("=…"):
            suggested += [override.rstrip(",") for override in shlex.split(part)]
    return suggested


@pytest.mark.parametrize(("line", "expected"), WRONG, ids=[line for line, _ in WRONG])
def test_every_hint_works_when_it_is_typed(line, expected):
    overrides = shlex.split(line)
    message = refusal(overrides)
    assert message is not None and "Traceback" not in message
    assert not [part for part in MESSAGES.get(line, []) if part not in f"{message}$"], message
    suggested = hints(message)
    assert set(expected) <= set(suggested), (message, suggested)
    is_first = message.endswith(" first")  # an option that has the key
    for hint in suggested:
        rest = [
            word for word in overrides if hint == "-m" or word.startswith("hydra.searchpath") or word != overrides[-1]
        ]
        assert refusal([*rest, hint, *overrides[-1:] * is_first]) is None, hint
