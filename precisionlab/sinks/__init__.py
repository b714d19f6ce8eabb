"""Where the records of a training go: files, the store, TensorBoard, Weights & Biases, Trackio.

`record_rows` turns what `optimizers.stagnation` found into rows of plain numbers, and a sink keeps rows. A sink is anything
with `write(rows)` and `close()`; those made here can be used in `with`.

    json_lines(path)             a file, one JSON object a line
    parquet(root, config)        a run folder, which `precisionlab list` and `precisionlab show RUN --sql` read
    tensorboard(logdir)          an event file, through tensorboardX
    wandb_run(run)               the user's own run of Weights & Biases
    trackio_run(run)             the user's own run of Trackio
    several(sink, ...)           all of them at once

What they need comes with `pip install 'precisionlab[sinks]'` and is loaded when a sink is made. In a job of many processes let
one of them write.

Example:
    >>> import pathlib, tempfile
    >>> import jax.numpy as jnp, optax
    >>> from precisionlab.optimizers import stagnation, track
    >>> optimizer, params = track(optax.sgd(1e-3)), {"scale": jnp.ones(4, jnp.bfloat16)}
    >>> state, path = optimizer.init(params), pathlib.Path(tempfile.mkdtemp(), "training.jsonl")
    >>> with json_lines(path) as sink:
    ...     for step in range(20):
    ...         updates, state = optimizer.update(params, state, params)
    ...         params = optax.apply_updates(params, updates)
    ...         if step % 10 == 9:
    ...             sink.write(record_rows(stagnation(state)))
    >>> print(path.read_text().splitlines()[-1])
    {"step": 20, "site": "weights", "path": "scale", ... "swamped": 4, ... "stagnated_fraction": 1.0, ...
"""

from precisionlab.sinks.files import json_lines, parquet
from precisionlab.sinks.opened import OpenSink, Sink, several
from precisionlab.sinks.rows import COLUMNS, Row, record_rows
from precisionlab.sinks.trackers import RATES, tensorboard, trackio_run, wandb_run

__all__ = [
    "COLUMNS",
    "RATES",
    "OpenSink",
    "Row",
    "Sink",
    "json_lines",
    "parquet",
    "record_rows",
    "several",
    "tensorboard",
    "trackio_run",
    "wandb_run",
]
