"""The columns of TensorBoard's HParams page for a whole sweep, varied settings first.

The page uses the columns of any one run that defines some, so a sweep's folder defines them, and its runs do not. It
works without TensorFlow, whose import takes seconds.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from cifar_research.comparison.runs import Run, varied
from cifar_research.runtime.files import atomic_write

FILE = "events.out.tfevents.0.hparams"


def write(folder: Path, runs: Sequence[Run]) -> None:
    """Write which settings and outcomes of these runs are columns, and their types."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    experiment = api_pb2.Experiment()
    first = {*varied(runs), "seed"}
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        values = [run.settings[key] for run in runs if key in run.settings]
        # A null counts as another value, but it would change the column's type, and no run writes one.
        types = {type(value) for value in values} - {type(None)}
        if types:
            differs = key in first and len(set(map(str, values))) > 1
            kind = "BOOL" if types == {bool} else "FLOAT64" if types <= {int, float} else "STRING"  # lists are text
            experiment.hparam_infos.add(name=key, type=getattr(api_pb2, f"DATA_TYPE_{kind}"), differs=differs)
    for tag in ("val/accuracy", "test/accuracy", "val/loss"):
        experiment.metric_infos.add(name=api_pb2.MetricName(tag=f"hparams/{tag}"), display_name=tag)
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
