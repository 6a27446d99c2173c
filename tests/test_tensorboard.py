"""A run's events as TensorBoard's own readers see them."""

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.context import RequestContext
from tensorboard.data import server_ingester
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util import grpc_util

from cifar_research.display.tensorboard import Writer

# Both ways in which TensorBoard reads a folder: --load_fast=false, and its data server, the default.


def read(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def slow_points(folder, tag):
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in read(folder).Tensors(tag)]


def fast_points(folder, tag):
    try:
        binary = server_ingester.get_server_binary()
    except server_ingester.NoDataServerError as error:
        pytest.skip(f"TensorBoard has no data server on this platform: {error}")
    ingester = server_ingester.SubprocessServerDataIngester(
        binary, str(folder), reload_interval=0, channel_creds_type=grpc_util.ChannelCredsType.LOCAL
    )
    ingester.start()
    context = RequestContext()
    provider = ingester.data_provider
    result = provider.read_scalars(context, experiment_id="", plugin_name="scalars", downsample=1000)
    return [(point.step, point.value) for point in result["."][tag]]


def write_points(folder, steps, value, resume_step=None):
    writer = Writer(folder, resume_step=resume_step)
    for step in steps:
        writer.scalars(step, {"train/loss": value})
    writer.close()


@pytest.mark.parametrize("points", [slow_points, fast_points])
def test_a_resumed_run_shows_each_step_once(points, tmp_path):
    write_points(tmp_path, range(1, 10), 1.0)
    write_points(tmp_path, range(6, 9), 2.0, resume_step=5)  # ends earlier: the old 8 and 9 must go, too
    write_points(tmp_path, range(8, 12), 3.0, resume_step=7)
    values = [1.0] * 5 + [2.0] * 2 + [3.0] * 4
    assert points(tmp_path, "train/loss") == list(zip(range(1, 12), values, strict=True))


@pytest.mark.parametrize("points", [slow_points, fast_points])
def test_a_run_restarted_in_the_folder_of_one_without_a_checkpoint_shows_each_step_once(points, tmp_path):
    write_points(tmp_path, range(1, 6), 1.0)
    write_points(tmp_path, range(1, 4), 2.0)
    assert points(tmp_path, "train/loss") == [(step, 2.0) for step in range(1, 4)]


def test_every_kind_of_page_has_its_data(tmp_path):
    writer = Writer(tmp_path)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    writer.scalars(3, {"train/loss": 0.5, "learning_rate": 0.01})
    function = tf.function(lambda x: tf.nn.relu(x, name="the_only_relu"))
    with writer.at(3):
        tf.summary.text("config", "```yaml\nseed: 0\n```")
        tf.summary.image("confusion", image[None])
        tf.summary.histogram("conv/kernel", rng.normal(size=(3, 3)))
        tf.summary.graph(function.get_concrete_function(tf.TensorSpec([None, 4])).graph)
    writer.close()

    events = read(tmp_path)
    plugins = {tag: events.SummaryMetadata(tag).plugin_data.plugin_name for tag in events.Tags()["tensors"]}
    assert plugins == {
        "train/loss": "scalars", "learning_rate": "scalars", "config": "text", "confusion": "images",
        "conv/kernel": "histograms", "__run_graph__": "graphs",
    }  # fmt: skip
    assert slow_points(tmp_path, "train/loss") == [(3, 0.5)]
    assert tf.make_ndarray(events.Tensors("config")[0].tensor_proto).item() == b"```yaml\nseed: 0\n```"
    width, height, picture = tf.make_ndarray(events.Tensors("confusion")[0].tensor_proto)
    assert (int(width), int(height)) == (6, 8)
    np.testing.assert_array_equal(tf.io.decode_png(picture).numpy(), image)
    assert "the_only_relu" in [node.name for node in events.Graph().node]


def test_hparams_have_typed_columns_and_the_outcomes_given(tmp_path):
    writer = Writer(tmp_path)
    writer.scalars(9, {"val/accuracy": 0.6})  # the last epoch's, after the best one
    values = {"seed": 0, "optimizer.learning_rate": 0.01, "name": "wide", "deterministic": True}
    outcomes = {"val/accuracy": 0.7, "test/accuracy": 0.65}
    writer.hparams(values | {"patience": None, "filters": [32, 64]}, outcomes)
    writer.close()

    contents = read(tmp_path).PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    written = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}
    assert written == values | {"filters": "[32, 64]"}
    experiment = metadata.parse_experiment_plugin_data(contents[metadata.EXPERIMENT_TAG])
    types = {info.name: api_pb2.DataType.Name(info.type) for info in experiment.hparam_infos}
    assert types == {
        "seed": "DATA_TYPE_FLOAT64", "optimizer.learning_rate": "DATA_TYPE_FLOAT64",
        "name": "DATA_TYPE_STRING", "deterministic": "DATA_TYPE_BOOL", "filters": "DATA_TYPE_STRING",
    }  # fmt: skip
    # Otherwise the page would hide the runs with other values.
    assert not any(info.WhichOneof("domain") for info in experiment.hparam_infos)
    infos = experiment.metric_infos
    shown = {info.display_name: slow_points(tmp_path, info.name.tag)[-1][1] for info in infos}
    assert shown == pytest.approx(outcomes)


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_profile_is_written_even_if_the_run_ends_before_it(tmp_path, is_stopped):
    writer = Writer(tmp_path)
    writer.profile_start()
    tf.reduce_sum(tf.ones([64, 64]) @ tf.ones([64, 64]))
    if is_stopped:
        writer.profile_stop()
    writer.close()
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
