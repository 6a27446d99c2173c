"""Settings: composed once, each factory called once, frozen, without process state."""

import collections
import dataclasses

import pytest

from cifar_research import config
from cifar_research.config import conf, rules, targets
from cifar_research.config.sweep import parse as parse_sweep
from cifar_research.runs import reproduction
from cifar_research.runtime.errors import ConfigError
from cifar_research.sweeps import run as sweep
from cifar_research.sweeps.plan import Plan
from cifar_research.train import command
from cifar_research.training import command as training

TINY = [
    "data=synthetic", "data.train_images=40", "data.test_images=20", "backbone.filters=[4]", "model.hidden=[8]",
    "augmentation=[flip,shift]", "training.epochs=1", "tensorboard.enabled=false",
]  # fmt: skip


@pytest.fixture
def counts(monkeypatch):
    """How often Hydra composes, and how often each factory is called."""
    counts, compose, instantiate = collections.Counter(), conf.compose, targets.hydra_instantiate

    def composing(*arguments, **more):
        counts["compositions"] += 1
        return compose(*arguments, **more)

    def calling(node, **more):
        counts[node["_target_"].rpartition(".")[2]] += 1
        return instantiate(node, **more)

    monkeypatch.setattr(conf, "compose", composing)
    monkeypatch.setattr(targets, "hydra_instantiate", calling)
    return counts


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.imbalance_factor=100"], ["data.imbalance_factor=100.0 has no effect with data.imbalance=none"]),
        (["data.imbalance_factor=100", "data.imbalance=step"], []),
        (["data.label_noise_rate=0.2"], ["data.label_noise_rate=0.2 has no effect with data.label_noise=none"]),
        (["data.val_fraction=0.2", "data.folds=4"], ["data.val_fraction=0.2 has no effect with data.folds=4"]),
        (["data.val_fraction=0.2", "data.validation=test"], ["data.val_fraction=0.2 has no effect with data.validation=test"]),
        (["experiment=fast", "data.folds=4"], []),  # the preset sets data.val_fraction, not the user
        (["batch_norm.images=9", "batch_norm.statistics=moving"],
         ["batch_norm.images=9 has no effect with batch_norm.statistics=moving"]),
        (["training.phases.scratch.learning_rate=0.1", "optimizer.learning_rate=1"],
         ["optimizer.learning_rate=1 has no effect with a value of its own in each phase, training.phases.<phase>.learning_rate"]),
        (["model=linear", "model.batch_norm=true"], ["model.batch_norm=True has no effect with model.hidden=[]"]),
        (["model=linear", "model.activation=gelu"], ["model.activation=gelu has no effect with model.hidden=[]"]),
        (["features.views=5", "evaluation.views=flip"], ["features.views=5 has no effect with evaluation.views=flip"]),
        (["tensorboard.histograms=true", "tensorboard.enabled=false"],
         ["tensorboard.histograms=True has no effect with tensorboard.enabled=False"]),
        (["training.phases.scratch.epochs=1", "training.epochs=3"],
         ["training.epochs=3 has no effect with a value of its own in each phase, training.phases.<phase>.epochs"]),
    ],
)  # fmt: skip
def test_a_key_without_effect_is_named(overrides, expected, tmp_path, monkeypatch, caplog):
    assert list(rules.without_effect(config.parse(overrides).content, overrides).values()) == expected
    monkeypatch.setattr(training, "run", lambda *arguments, **more: {"status": "completed"})
    training.trained(config.compose([*overrides, f"hydra.run.dir={tmp_path}"]))
    assert [record.getMessage() for record in caplog.records if "effect" in record.getMessage()] == expected


def test_features_are_not_kept_for_test_time_augmentation(tmp_path):
    (tmp_path / "model.weights.h5").touch()
    overrides = ["experiment=transfer", "backbone=cnn", f"backbone.weights={tmp_path}"]
    kept = [config.parse([*overrides, f"evaluation.views={views}"]).kept_views for views in ("none", "flip")]
    assert kept == [1, 0]


def test_a_repeated_run_sets_every_key_and_names_none(tmp_path):
    settings = config.parse(TINY)
    overrides = reproduction._overrides(settings.content)
    assert config.parse(overrides).content == settings.content
    assert "data.imbalance_factor=100.0" in overrides and not rules.without_effect(settings.content, overrides)


def test_a_sweep_names_the_keys_that_have_no_effect_in_any_job():
    def notes(*overrides):
        plan = Plan.of(parse_sweep([*TINY, *overrides]))
        return sweep._without_effect(plan, plan.grid())

    fixed = ["data.imbalance_factor=10", "data.label_noise_rate=0.2", "data.label_noise=none,symmetric"]
    assert notes(*fixed) == ["data.imbalance_factor=10.0 has no effect with data.imbalance=none"]
    assert notes("data.imbalance_factor=10,20", "data.imbalance=none,step") == []
    with pytest.raises(ConfigError, match="^data.imbalance_factor: 10.0 has no effect .*the same; give one value"):
        notes("data.imbalance_factor=10,20")


FACTORIES = ["adam", "cnn", "constant", "head", "horizontal_flip", "mean_squared_error", "none", "shift"]


def test_a_run_is_composed_once_and_calls_each_factory_once(counts, tmp_path):
    assert command([*TINY, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert counts == {"compositions": 1, **dict.fromkeys(FACTORIES, 1)}


def test_jobs_that_differ_in_values_share_a_composition(counts):
    settings = parse_sweep([*TINY, "seed=1,2,3"])
    assert counts == {"compositions": 1, "local": 1}
    assert len(Plan.of(settings).grid()) == 3
    # The first job is composed, and parsed a second time to check the shared composition.
    assert counts == {"compositions": 2, "local": 1, **dict.fromkeys(FACTORIES, 2)}


def test_settings_are_frozen():
    settings = config.parse(TINY)
    for section in (settings, settings.data, settings.training, settings.phases[0], settings.backbone):
        with pytest.raises(dataclasses.FrozenInstanceError):
            section.name = "other"


def test_what_one_command_line_allows_the_next_does_not(monkeypatch, tmp_path):
    (tmp_path / "one_lab.py").write_text("def decay():\n    return lambda s, t, e: 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ["~schedule", "+schedule={_target_:one_lab.decay}"]
    assert config.parse([*overrides, "allow_targets=[one_lab]"]).schedule(0, 1, 1) == 0.5
    with pytest.raises(ConfigError, match=r"allow_targets=\[one_lab\]"):
        config.parse(overrides)
