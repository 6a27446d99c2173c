"""The columns of TensorBoard's HParams page for a whole sweep: what varies comes first, where the page shows it.

The page takes its columns from any one run that names some, and shows those first that are said to differ. So the runs
of a sweep name none, and the sweep's own folder does. Without TensorFlow, whose import takes seconds.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from cifar_research.comparison.runs import Run, varied
from cifar_research.runtime.files import atomic_write

FILE = "events.out.tfevents.0.hparams"
OUTCOMES = ("val/accuracy", "test/accuracy", "val/loss")


def write(folder: Path, runs: Sequence[Run]) -> None:
    """Write which settings of these runs, and which outcomes, are columns, and of which type."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    values: dict[str, list] = {}
    for run in runs:
        for key, value in run.settings.items():
            values.setdefault(key, []).append(value)
    first = {*varied(runs), "seed"}
    # A null is in no cell of its column, whose type it would break, but it is a value that differs from others.
    named = {key: [value for value in found if value is not None] for key, found in values.items()}
    experiment = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=key, type=_type(named[key]), differs=key in first and len(set(map(str, found))) > 1)
            for key, found in values.items()
            if named[key]
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"hparams/{tag}"), display_name=tag) for tag in OUTCOMES
        ],
    )
    summary = Summary()
    summary.value.add(
        tag=metadata.EXPERIMENT_TAG,
        tensor=metadata.NULL_TENSOR,
        metadata=metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(experiment=experiment)),
    )
    content = io.BytesIO()
    records = RecordWriter(content)
    for event in (Event(file_version="brain.Event:2"), Event(summary=summary)):
        records.write(event.SerializeToString())
    atomic_write(folder / FILE, content.getvalue())


def _type(values: Sequence[object]) -> int:
    """Return a column's type; lists are text, as each run writes them."""
    from tensorboard.plugins.hparams import api_pb2

    if all(isinstance(value, bool) for value in values):
        return api_pb2.DATA_TYPE_BOOL
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return api_pb2.DATA_TYPE_FLOAT64
    return api_pb2.DATA_TYPE_STRING
