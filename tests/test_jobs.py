"""Jobs of a sweep: a shared composition gives the configs and the messages that composing each job gives."""

import itertools
import json

import pytest
from omegaconf import OmegaConf

from cifar_research import config
from cifar_research.config.jobs import JobParser
from cifar_research.runtime.errors import ConfigError

SHORT = ["data=synthetic", "tensorboard.enabled=false"]
GRIDS = {
    "numbers": [["seed=0", "seed=1"], ["optimizer.learning_rate=0.1", "optimizer.learning_rate=1"]],
    "a whole number for a float": [["optimizer.learning_rate=1", "optimizer.learning_rate=1e-3"]],
    "lists": [["backbone.filters=[4]", "backbone.filters=[4, 8]"], ["model.hidden=[]", "model.hidden=[3]"]],
    "null": [["training.ema_decay=null", "training.ema_decay=0.9"], ["data.train_size=null", "data.train_size=100"]],
    "booleans": [["backbone.batch_norm=true", "backbone.batch_norm=false"], ["data.standardize=true"]],
    "texts": [["name=a", "name=2021", "name='x y'"], ["training.precision=float32", "training.precision=bfloat16"]],
    "options": [["optimizer=sgd", "optimizer=adam"], ["schedule=cosine", "schedule=constant"], ["seed=0", "seed=1"]],
    "an option and its key": [["optimizer=sgd"], ["optimizer.momentum=0.5", "optimizer.momentum=0.9"]],
    "presets": [["experiment=wide", "experiment=quickstart"], ["training.epochs=1", "training.epochs=2"]],
    "a computed name": [["data=images"], ["data.dir=/pets", "data.dir=/flowers"]],
    "Hydra's values": [["name=${hydra:job.override_dirname}"], ["seed=0", "seed=1"]],
    "another key's value": [["data.seed=${seed}"], ["seed=0", "seed=1"]],
    "another section": [
        ["+augmentation.again=${augmentation.horizontal_flip}"],
        ["augmentation=flip"],
        ["seed=0", "seed=1"],
    ],
    "phases": [["training.epochs=2"], ["training.phases.scratch.epochs=1", "training.phases.scratch.epochs=2"]],
    "an augmentation without": [["augmentation=flip"], ["augmentation.horizontal_flip=null", "seed=1"]],
    "an added key": [["++seed=1", "++seed=2"]],
    "a mapping": [["backbone={dropout:0.1}", "backbone={dropout:0.2}"], ["backbone.dropout=0.3", "seed=3"]],
}
WRONG = [
    "seed=-1", "seed=x", "seed=1.5", "optimizer.learning_rate=-1", "optimizer.learning_rate=x", "training.epochs=0",
    "optimizer.rate=1", "data.name=images", "backbone.filters=3", "backbone.filters=[x]", "training=3",
    "backbone.filters=[]", "data.image_size=64", "training.precision=float8", "backbone=3", "seed=???", "seed=${x}",
    "optimizer._target_=os.system", "training.phases.scratch.trainable=none", "model.hidden=[-1]", "schedule=none_such",
]  # fmt: skip


GOOD = config.compose(SHORT).config


@pytest.mark.parametrize("grid", GRIDS)
def test_a_job_has_the_config_of_its_command(grid):
    parser = JobParser(SHORT, [])
    for row in itertools.product(*GRIDS[grid]):
        # As JSON, since a section of OmegaConf would equal a mapping.
        assert json.dumps(parser.content(row)) == json.dumps(config.parse([*SHORT, *row]).content)


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_job_has_the_message_of_its_command(word):
    key, parser = word.partition("=")[0], JobParser(SHORT, [])
    if (value := OmegaConf.select(GOOD, key)) is not None and not OmegaConf.is_dict(value):
        parser.content([f"{key}={value}"])
    messages = []
    for parse in (parser.content, lambda row: config.parse([*SHORT, *row])):
        with pytest.raises(ConfigError) as error:
            parse([word])
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_jobs_do_not_change_each_other():
    parser = JobParser(SHORT, [])
    first = parser.content(["seed=1", "backbone.filters=[4]"])
    second = parser.content(["seed=2", "backbone.filters=[8]"])
    assert (first["seed"], first["backbone"]["filters"]) == (1, [4])
    assert (second["seed"], second["backbone"]["filters"]) == (2, [8])
    assert first["training"] is second["training"]
