"""Invalid configs fail before TensorFlow is imported; messages name key, value and remedy."""

import subprocess
import sys

import forked
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from cifar_research import config
from cifar_research.config import messages
from cifar_research.config.identity import PLUGIN_GROUPS
from cifar_research.runtime.errors import ConfigError

# Command line, or its words if one has spaces, and what the message must contain, $ at its end.
# Lines whose message has a hint that works are in test_hints.py.
BAD = [
    ("training.epochs=ten", ["training.epochs", "ten"]),
    ("training.epochs=0", ["training.epochs", "0", "at least 1"]),
    ("training.epochs=-3", ["training.epochs", "-3"]),
    ("training.epochs=2.5", ["training.epochs", "2.5"]),
    ("training.epochs=null", ["training.epochs: takes a whole number, not null"]),
    ("data.val_fraction=null", ["data.val_fraction: takes a number, not null"]),
    ("tensorboard.enabled=null", ["tensorboard.enabled: takes true or false, not null"]),
    ("name=null", ["name: takes a text, not null"]),
    ("data.image_size=64", ["data.image_size: there is no such key here; choose data=images first$"]),
    ("tensorboard=3", ["tensorboard: is a section and cannot be 3; set one of its keys: enabled, histograms"]),
    ("training=combined training.phases.head=null", ["remove it with ~training.phases.head"]),
    ("data.classes=circle", ['data.classes: takes a list, not circle; give "data.classes=[circle]"']),
    ("allow_targets=null", ['allow_targets: takes a list, not null; give "allow_targets=[]"']),
    ("seed=1 seed=1.5", ["seed: takes a whole number, not 1.5"]),
    ("seed=1.5 seed=1", ["seed: takes a whole number, not 1.5"]),
    ("training.batch_size=0", ["training.batch_size", "0"]),
    ("training.batchsize=64", ["training.batchsize", "batch_size"]),
    ("sweep.on_error=halt", ["sweep.on_error: 'halt' is not one of continue, stop$"]),
    ("training.phases.scratch.optimizer=x", ["'x' is not one of reset, keep$"]),
    ("training.phases.scratch.learning_rate=inf", ["inf is out of range; it must be above 0 and finite"]),
    ("optimizer.learning_rate=inf", ["inf is out of range; it must be above 0 and finite"]),
    ("optimizer=adamw optimizer.weight_decay=inf", ["inf is out of range; it must be at least 0 and finite"]),
    ("model.scale=inf", ["model.scale: inf is out of range; it must be above 0 and finite"]),
    (
        "augmentation=shift augmentation.shift.fraction=null",
        ["pixels: give either pixels or fraction"],
    ),
    ("augmentation=shift augmentation.shift.pixels=3", ["not 3 and 0.1"]),
    ("training.precision=double", ["training.precision", "double", "float32"]),
    ("training.strategy=mirror", ["training.strategy", "mirror", "did you mean 'mirrored'"]),
    ("training.deterministic=maybe", ["training.deterministic", "maybe"]),
    ("training.threads=0", ["training.threads", "0"]),
    ("training.steps_per_call=0", ["training.steps_per_call", "0"]),
    ("training.ema_decay=1.0", ["training.ema_decay", "1.0", "below 1"]),
    ("training.monitor=acuracy", ["training.monitor", "acuracy", "did you mean 'accuracy'"]),
    ("training.patience=0", ["training.patience", "0"]),
    ("training.keep_checkpoints=0", ["training.keep_checkpoints", "0"]),
    ("training.log_every_steps=0", ["training.log_every_steps", "0"]),
    ("training=scrach", ["training", "scrach", "did you mean 'scratch'"]),
    ("training.jit_compile=maybe", ["training.jit_compile: 'maybe' is not one of true, false, auto"]),
    ("training.jit_compile=1", ["training.jit_compile: 1 is not one of true, false, auto"]),
    ("training.jit_compile=true training.deterministic=true", ["training.deterministic", "jit_compile"]),
    ("training.jit_compile=true training.strategy=multi_worker", ["training.jit_compile", "multi_worker"]),
    ("training.jit_compile=true training.strategy=mirrored", ["training.jit_compile", "mirrored"]),
    ("evaluation.views=mirror", ["evaluation.views", "mirror", "flip_shift"]),
    ("evaluation.view=flip", ["evaluation.view", "views"]),
    ("backbone.weights=imagenet", ["backbone.weights: this backbone has no ImageNet weights", "none"]),
    ("optimizer=muon optimizer.iterations=0", ["optimizer.iterations", "0"]),
    ("optimizer=sgd optimizer.bias_scale=0", ["optimizer.bias_scale", "0"]),
    ("backbone=airbench backbone.convolutions=4", ["backbone.convolutions: 4 is not one of 2, 3"]),
    ("backbone=airbench backbone.convolutions=2.0", ["backbone.convolutions: 2.0 is not one of 2, 3"]),
    ("model.scale=0", ["model.scale", "0"]),
    ("seed=-1", ["seed", "-1"]),
    ("seed=one", ["seed", "one"]),
    ("data=cifar11", ["data", "cifar11", "did you mean 'cifar10"]),
    ("data=images", ["data.dir"]),
    ("data.val_fraction=1", ["data.val_fraction", "1", "below 1"]),
    ("data.val_fraction=-0.1", ["data.val_fraction", "-0.1"]),
    ("data.val_fraction=0 training.patience=2", ["training.patience", "data.val_fraction=0"]),
    ("data.validation=tset", ["data.validation", "tset", "did you mean 'test'"]),
    ("data.train_size=0", ["data.train_size", "0"]),
    ("data=synthetic data.train_images=5", ["data.train_images", "5"]),
    ("data=synthetic data.download=true", ["data.download"]),
    ("optimizer=adamm", ["optimizer", "adamm", "did you mean 'adam"]),
    ("optimiser=adam", ["optimiser", "optimizer"]),
    ("optimizer.momentom=0.9", ["optimizer.momentom"]),
    ("optimizer=sgd optimizer.momentom=0.9", ["optimizer.momentom", "did you mean optimizer.momentum=0.9?"]),
    ("optimizer=sgd +optimizer.momentom=0.9", ["optimizer.momentom", "sgd", "did you mean 'momentum'"]),
    ("optimizer.learning_rate=0", ["optimizer.learning_rate", "0"]),
    ("optimizer.learning_rate=fast", ["optimizer.learning_rate", "fast", "a number"]),
    ("optimizer.beta_1=1", ["optimizer.beta_1", "1"]),
    ("optimizer=adamw optimizer.weight_decay=-1", ["optimizer.weight_decay", "-1"]),
    ("optimizer.clip_norm=0", ["optimizer.clip_norm", "0"]),
    ("optimizer=sgd optimizer.momentum=0 optimizer.nesterov=true", ["optimizer.nesterov", "momentum"]),
    ("data=synthetic data.dir=pets", ["data.dir: pets is not used", "add data=images"]),
    ("loss.label_smoothing=1.5", ["loss.label_smoothing", "1.5"]),
    ("backbone.filters=3", ["backbone.filters: takes a list of whole numbers, not 3"]),
    ("backbone=vgg16 backbone.batch_norm=yes", ["backbone.batch_norm: 'yes' is not one of inference, train, null"]),
    ("hydra.launcher.job=3", ["hydra.launcher.job: there is no such key; did you mean hydra.launcher.jobs=3?"]),
    ("hydra.run.dir=", ["hydra.run.dir: has no value; give one: hydra.run.dir="]),
    ("data.dir=''", ["data.dir: has no value"]),
    ("backbone.filters=[]", ["backbone.filters", "[]"]),
    ("backbone.filters=[32,many]", ["backbone.filters", "many"]),
    ("backbone.pooling=maxx", ["backbone.pooling: 'maxx' is not one of max, avg; did you mean 'max'?"]),
    ("backbone.dropout=1", ["backbone.dropout", "1"]),
    ("backbone.batch_norm=3", ["backbone.batch_norm", "3", "true or false"]),
    ("backbone._target_=cifar_research.models.backbones.cnn.cn", ["backbone._target_", "cn", "did you mean 'cnn'"]),
    ("backbone._target_=no_such_module.net", ["backbone._target_", "no_such_module"]),
    ("model.dropout=-0.1", ["model.dropout", "-0.1"]),
    ("model.hidden=[0]", ["model.hidden", "0"]),
    ("model=widest", ["model", "widest", "did you mean 'wide'"]),
    ("schedule=cosin", ["schedule", "cosin", "did you mean 'cosine'"]),
    ("schedule=cosine schedule.warmup_epochs=1 schedule.warmup_steps=5", ["schedule.warmup_steps", "warmup_epochs"]),
    ("schedule=step_decay schedule.factor=0", ["schedule.factor", "0"]),
    ("augmentation=slide", ["augmentation", "slide", "did you mean 'slides'"]),
    ("augmentation=slides augmentation.rotation.degree=3", ["augmentation.rotation.degree", "degrees"]),
    ("augmentation=slides augmentation.rotation.degrees=-5", ["augmentation.rotation.degrees", "-5"]),
    ("augmentation=rotation augmentation.rotation=3", ["augmentation.rotation", "3"]),
    ("experiment=wid", ["experiment", "wid", "did you mean 'wide'"]),
    ("tensorboard.profile_num_steps=0", ["tensorboard.profile_num_steps", "0"]),
    ("training.epochs=[1", ["training.epochs=[1"]),
    ("training.epochs=[1,2", ["training.epochs=[1", "close its brackets"]),
    ("backbone.filters=[32, 64]", ["backbone.filters=[32,: cannot be read; close its brackets, leave out spaces"]),
    (
        "optimizer = sgd",
        ["optimizer: is not of the form key=value; write it without spaces, as in seed=1"],
    ),
    (
        "optimizer.learning_rate=interval(1,2)",
        ["interval(1,2) are several values; for a search add -m sweep.trials=20"],
    ),
    ("hydra.searchpath=[file://nope] backbone=small", ["hydra.searchpath: nope does not exist; give the folder"]),
    ("+name=it's", ['name: "it\'s" needs quotes', """give "+name='it\\'s'\""""]),
    ("hydra.run.dir=/tmp/bücher", ["hydra.run.dir:", """give "hydra.run.dir='/tmp/bücher'\""""]),
    ("hydra.run.dir=/tmp/a=b", ["hydra.run.dir:", """give "hydra.run.dir='/tmp/a=b'\""""]),
    (["data.dir=/tmp/pets, dogs=2 ü"], ["data.dir:", """give "data.dir='/tmp/pets, dogs=2 ü'\""""]),
    ("data.classes=[cat,dög]", ["data.classes=[cat,dög]: cannot be read", "put texts in single quotes"]),
    (["seed 1"], ["seed 1: is not of the form key=value"]),
    (["just words"], ["just words"]),
    ("~optimizer", ["optimizer", "has no value"]),
    ("~augmentation", ["augmentation", "has no value"]),
    ("data.name=???", ["data.name", "has no value"]),
    ("data=synthetic data.name=cifar10", ["data.name", "cifar10"]),
    ("name=${nowhere}", ["name", "nowhere"]),
    ("data.dir=${oc.env:CIFAR_NOT_SET}", ["data.dir", "CIFAR_NOT_SET"]),
    ("seed=1 backbone=null", ["backbone: there is no option null. Its options are airbench, cnn, densenet121"]),
    ("backbone=tiny", ["there is no option 'tiny'. Its options are", "resnet50, vgg16$"]),
    ("data=imagenet", ["there is no option 'imagenet'. Its options are"]),
    ("temperature=2", ["temperature: there is no such key; docs/configuration.md lists all keys$"]),
    ("optimizer.foo=1", ["it has beta_1, beta_2, clip_norm, epsilon, learning_rate$"]),
    ("data.label_noise=true", ["data.label_noise: true is not one of none, symmetric, asymmetric$"]),
    ("~seed", ["seed: cannot be removed; leave out ~seed$"]),
    ("~tensorboard", ["tensorboard: cannot be removed; leave out ~tensorboard$"]),
    ("+optimizer=sgd", ["optimizer: has a value already; remove the +$"]),
    ("naïve=", ["'naïve' is not a valid key"]),
    ("backbone=vgg16 backbone.weights=none,imagenet", ["for a sweep add -m, for a text give"]),
    ("+sweep.foo=1", ["sweep.foo: there is no such key; it has keep, on_error, retries, time_limit, trials$"]),
    ("++tensorboard={a:1}", ["tensorboard.a: Key 'a' not in"]),
    ("seed=[0,1]", ["seed: takes a whole number, not [0,1]"]),
    ("optimizer=3", ["optimizer: there is no option '3'. Its options are adam, adamw"]),
    ("optimizer=", ["optimizer: there is no option ''. Its options are adam, adamw, lion, muon, rmsprop, sgd"]),
    (
        "augmentation=[flip,shft]",
        ["augmentation: there is no option 'shft'; did you mean 'shift'? Its options are alternating_flip"],
    ),
    ("+batch_size=64", ["batch_size", "no such key"]),
    ("+data.extra=1", ["data.extra", "no such key"]),
    ("+data.hydra=1", ["data.hydra: there is no such key"]),
    ("model.hidden.x=3", ["model.hidden.x: there is no such key"]),
    ("optimizer._target_=cifar_research.optimization.optimizers", ["optimizer._target_", "is not a factory"]),
    ("+optimizer._partial_=true", ["optimizer._partial_"]),
    ("schedule=cosine schedule.warmup_epochs=nan", ["schedule.warmup_epochs", "nan"]),
    ("schedule=cosine schedule.warmup_epochs=12", ["schedule.warmup_epochs", "training.epochs=10"]),
    ("schedule=step_decay schedule.every_epochs=inf", ["schedule.every_epochs", "inf"]),
    ("backbone.filters=[8,8,8,8,8,8]", ["backbone", "64 x 64", "32 x 32"]),
    ("data=images data.dir=x data.image_size=8 backbone.filters=[8,8,8,8]", ["backbone", "16 x 16", "8 x 8"]),
    ("training.batch_size=100000000000000000000", ["training.batch_size", "at most"]),
    ("training.strategy=multi_worker", ["training.strategy", "TF_CONFIG"]),
    (
        "augmentation=[flip,shift] augmentation.flip.probability=1",
        ["did you mean augmentation.horizontal_flip.probability=1?"],
    ),
]


@pytest.mark.parametrize(("line", "parts"), BAD, ids=[str(line) for line, _ in BAD])
def test_bad_config_is_refused(line, parts):
    overrides = line if isinstance(line, list) else line.split()
    with pytest.raises(ConfigError) as raised:
        config.parse(overrides)
    message = str(raised.value)
    assert not [part for part in parts if part not in f"{message}$"], message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-m --seed=1,2", "--seed=1,2: is not an option; write settings without dashes, as in seed=1"),
        ("--lr=3 --optimizer adam", "--lr=3 --optimizer: is not an option"),
        ("--config-dir x", "--config-dir: is not an option"),
    ],
)
def test_flags_are_answered_with_what_to_write(line, message):
    assert message in messages.flags(line.split())


def run_command(*arguments, cwd=None):
    return forked.run(arguments, cwd=cwd)


def test_command_line_exits_with_2_and_no_traceback_and_no_folder(tmp_path):
    folder = tmp_path / "run"
    done = run_command("optimizer=sgd", "optimizer.momentom=0.9", f"hydra.run.dir={folder}")
    assert done.returncode == 2
    assert "optimizer.momentom" in done.stderr and "momentum" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not folder.exists()


def test_typo_inside_a_preset_is_refused(tmp_path):
    extra = tmp_path / "experiment"
    extra.mkdir()
    (extra / "mine.yaml").write_text("# @package _global_\ntraining:\n  epoch: 3\n")
    done = run_command(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert done.returncode == 2
    assert "training.epoch" in done.stderr and "epochs" in done.stderr and "Traceback" not in done.stderr


def test_a_preset_with_another_kind_of_value_is_refused(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndata:\n  classes: cat\n")
    with pytest.raises(ConfigError, match=r"^data\.classes: .* is not a ListConfig.* \(in experiment/mine\)"):
        config.compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])


def test_a_phase_is_added_as_the_message_says():
    settings = config.parse(["++training.phases={b:{epochs:3}}"])
    assert [(name, phase.epochs) for name, phase in settings.training.phases.items()] == [("scratch", None), ("b", 3)]


def test_check_imports_no_tensorflow():
    code = (
        "import sys, cifar_research.train; from cifar_research import config\n"
        "config.parse(['experiment=augmented', 'augmentation=strong', 'schedule=cosine'])\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("optimizer: null", "optimizer: None has no _target_"),
        ("schedule: 5", "schedule: 5 has no _target_"),
        ("augmentation: 3", "augmentation: 3 is not a mapping"),
    ],
)
def test_a_files_section_that_is_no_mapping_is_refused(tmp_path, section, problem):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{section}\n")
    with pytest.raises(ConfigError, match=problem):
        config.parse([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])


def test_an_optimizer_without_a_learning_rate_takes_each_phases(tmp_path, monkeypatch):
    text = "from cifar_research.optimization import optimizers\ndef mine():\n    return optimizers.adam(learning_rate=1.0)\n"
    (tmp_path / "rates_lab.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ["allow_targets=[rates_lab]", "~optimizer", "+optimizer={_target_: rates_lab.mine}"]
    with pytest.raises(ConfigError, match=r"training\.phases\.scratch\.learning_rate: has no value"):
        config.parse(overrides)
    assert config.parse([*overrides, "training.phases.scratch.learning_rate=0.1"]).phases[0].learning_rate == 0.1


def test_users_own_factory_is_checked_and_used(tmp_path, monkeypatch):
    (tmp_path / "my_lab.py").write_text(
        "def decay(*, power: float):\n    return lambda s, t, e: (1 - s / t) ** power\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ["allow_targets=[my_lab]", "schedule._target_=my_lab.decay"]
    overrides += ["~schedule.warmup_epochs", "~schedule.warmup_steps"]
    with pytest.raises(ConfigError, match="schedule.power: decay needs a value"):
        config.parse(overrides)
    assert config.parse([*overrides, "+schedule.power=2.0"]).schedule(5, 10, 1) == 0.25
    with pytest.raises(ConfigError, match="allow_targets"):  # which the first one has not allowed for good
        config.parse(overrides[1:])


def test_a_module_that_imports_a_factory_late_may_fail(tmp_path, monkeypatch):
    (tmp_path / "late_lab.py").write_text("def __getattr__(name):\n    raise ImportError('it needs jax')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"schedule\._target_: cannot import 'late_lab.decay' \(it needs jax\)"):
        config.parse(["allow_targets=[late_lab]", "schedule._target_=late_lab.decay"])


def test_hash_ignores_what_changes_nothing_and_sees_order():
    plain = config.parse(["augmentation=[flip,shift]"]).identity
    free = ["augmentation=[flip,shift]", "data.dir=/elsewhere", "training.log_every_steps=7", "name=other"]
    assert plain.hash == config.parse(free).identity.hash
    for other in (["augmentation=[shift,flip]"], ["augmentation=[flip,shift]", "seed=1"]):
        assert plain.hash != config.parse(other).identity.hash


def test_difference_names_the_keys(tmp_path):
    before = config.parse(["seed=3"]).identity
    with pytest.raises(ConfigError, match="seed: this run has 3, the command says 4"):
        before.require_same(config.parse(["seed=4"]).identity, tmp_path)
    before.require_same(config.parse(["seed=3", "data.dir=/elsewhere"]).identity, tmp_path)


def test_every_option_lists_exactly_its_factorys_parameters():
    """Every parameter can be overridden without a plus sign, and no file has other keys."""
    import inspect
    from pathlib import Path

    from hydra.utils import get_method

    for group in PLUGIN_GROUPS:
        for path in sorted((Path(config.config_dir()) / group).glob("*.yaml")):
            node = config.compose([f"{group}={path.stem}"]).config[group]
            keys = {key for key in node if key != "_target_"}
            assert keys == set(inspect.signature(get_method(node._target_)).parameters), path


# A command line, a key, and the text that it takes although YAML reads something else.
TEXTS = [
    ("data.classes=[true,false]", "data.classes", ["true", "false"]),
    ("data.classes=['001',1e3,null]", "data.classes", ["001", "1e3", "null"]),
    ("data.classes=[Yes,NaN,0x10,1_000,a b]", "data.classes", ["Yes", "NaN", "0x10", "1_000", "a b"]),
    ("name=001", "name", "001"),
    ("data.dir=1e3", "data.dir", "1e3"),
    ("data.dir=null", "data.dir", None),
    ("data.classes=null", "data.classes", None),
    ("backbone.weights=2021", "backbone.weights", "2021"),
    ("hydra.run.dir=007", "hydra.run.dir", "007"),
    ("seed=7", "seed", 7),
    ("++model={hidden:[4]}", "model.hidden", [4]),
]


@pytest.mark.parametrize(("word", "key", "expected"), TEXTS)
def test_a_text_stays_as_it_was_typed(word, key, expected):
    assert OmegaConf.select(config.compose([word]).config, key) == expected


def test_an_option_may_be_called_like_a_number(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "2021.yaml").write_text("# @package _global_\nseed: 21\n")
    assert config.parse([f"hydra.searchpath=[file://{tmp_path}]", "experiment=2021"]).seed == 21


def test_hydras_resolvers_are_values_of_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETS", "cats")
    overrides = [
        "data.dir=${hydra:runtime.cwd}/${oc.env:PETS}",
        "name=${hydra:job.name}-${hydra:runtime.choices.optimizer}",
    ]
    overrides += ["hydra.run.dir=${hydra:runtime.cwd}/r", "data.cache_dir=${hydra:runtime.output_dir}"]
    settings = config.parse(overrides)
    assert settings.data.cache_dir == f"{tmp_path}/r"
    assert (settings.data.dir, settings.name) == (f"{tmp_path}/cats", "train-adam")
    cfg = config.compose(["name=${hydra:job.override_dirname}", "optimizer=sgd", "seed=3"]).config
    assert cfg.name == "optimizer=sgd,seed=3" and cfg.hydra.run.dir.startswith("outputs/optimizer=sgd,seed=3/")


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("data.dir=${hydra:runtime.cwdd}", "${hydra:runtime.cwdd} has no value"),
        ("data.dir=${hydra:}", "${hydra:} has no value in a single run; correct or remove the value"),
        ("data.dir=${nowhere}", "Interpolation key 'nowhere' not found; correct or remove the value"),
        ("data.dir=${oc.env:NOWHERE}", "Environment variable 'NOWHERE' not found; correct or remove the value"),
        ("+tensorboard.x=${hydra:job.numm}", "${hydra:job.numm} has no value"),
        ("name=${hydra:job.num}", "${hydra:job.num} has no value"),
    ],
)
def test_a_resolver_without_a_value_is_refused(word, part):
    with pytest.raises(ConfigError) as raised:
        config.parse([word])
    assert str(raised.value).startswith(f"{word.lstrip('+').partition('=')[0]}: ") and part in str(raised.value)


def test_the_config_of_a_program_that_uses_hydra_itself_is_read_as_before(monkeypatch):
    theirs = HydraConfig.instance()
    monkeypatch.setattr(theirs, "cfg", None)
    theirs.set_config(config.compose(["hydra.job.name=theirs"]).config)
    assert config.parse(["name=${hydra:job.name}"]).name == "train"
    assert OmegaConf.create({"name": "${hydra:job.name}"}).name == "theirs"


@pytest.mark.parametrize(
    ("words", "key"),
    [(["name=???"], "name"), (["data=images", "data.dir=x", "data.classes=['???',b]"], r"data\.classes\[0\]")],
)
def test_a_value_that_is_missing_is_named(words, key):
    with pytest.raises(ConfigError, match=f"^{key}: has no value; give one"):
        config.parse(words)


LAB = """
def net(*, width: int = 4, kind: str = "map"):
    def build(image_shape):
        import keras
        if kind == "raise":
            raise RuntimeError("out of ideas")
        if kind == "none":
            return None
        layers = [keras.Input(image_shape), keras.layers.Conv2D(width, 3)]
        if kind != "map":
            layers += [keras.layers.GlobalAveragePooling2D()]
        if kind == "classifier":
            layers += [keras.layers.Dense(10)]
        if kind == "softmax":
            layers += [keras.layers.Dense(1000), keras.layers.Softmax()]
        return keras.Sequential(layers)
    return build

def no_shape():
    def build():
        return None
    return build
"""


def test_a_hint_knows_the_parameters_of_a_users_factory(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(LAB)
    (tmp_path / "conf" / "backbone").mkdir(parents=True)
    (tmp_path / "conf" / "backbone" / "net.yaml").write_text("_target_: my_nets.net\nkind: map\n")
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ["allow_targets=[my_nets]", f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "backbone=net"]
    config.compose(overrides)
    with pytest.raises(ConfigError, match=r"backbone.widht: .* did you mean \+backbone.width=8\?"):
        config.compose([*overrides, "backbone.widht=8"])
    config.parse([*overrides, "+backbone.width=8"])


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "cifar10"),
        (["data=synthetic"], "synthetic"),
        (["experiment=wide", "data=cifar100"], "wide"),
        (["experiment=wide", "name=mine"], "mine"),
        (["data=images"], "images"),
        (["data=images", "data.dir=pets"], "pets"),
        (["data=images", "data.dir=/x/pets/"], "pets"),
        (["data=images", "data.dir=."], "here"),
        (["data=images", "data.dir='~'"], "home"),
        (["data=images", "data.dir=/"], "images"),
        (["data=images", "data.dir='my pets\udcff$(x)'"], "my_pets_x"),
        (["data=images", "data.dir=${oc.env:HOME}/cats"], "cats"),
    ],
)
def test_a_run_without_an_experiment_is_named_after_its_data_set(tmp_path, monkeypatch, overrides, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", "/some/home")
    cfg = config.compose(overrides).config
    assert cfg.name == name and cfg.hydra.run.dir.startswith(f"outputs/{name}/")
    assert cfg.hydra.sweep.dir.startswith(f"outputs/{name}/sweep_")
