"""The verbs about other people's checkpoints: `forecast` and `compare`.

Like all verbs they parse, call one public function and print; what is slow to import is imported when they are called.
"""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from precisionlab._nearest import allowed_names
from precisionlab.cli import terminal
from precisionlab.cli.options import JSON, PLOT, check_writable
from precisionlab.cli.terminal import Failure

__all__ = ["compare", "forecast"]


@click.command("forecast", short_help="Which updates a checkpoint's weights would lose.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--lr", type=float, required=True, help="Learning rate.")
@click.option("--optimizer", default="adamw", show_default=True, help="What trains it; Adam-like ones update by about --lr.")
@click.option("--update-size", type=float, help="|u| of an update, where the optimizer does not tell it.")
@click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Decoupled: it asks for lr * this * |w|.")
@click.option("--formats", default="bfloat16,float8_e4m3fn", show_default=True, help="Names of formats, with commas.")
@PLOT
@JSON
def forecast(
    checkpoint: Path,
    lr: float,
    optimizer: str,
    update_size: float | None,
    weight_decay: float,
    formats: str,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Tell which updates the weights in CHECKPOINT would lose, from the weights alone.

    CHECKPOINT is a .safetensors or .npz file, an index of shards, a folder with one of them, or an Orbax checkpoint
    (of a manager's steps the newest); pickles are never loaded. The share lost is for updates of one size, the interval
    behind it for sizes as they occur in training.

    \b
    precisionlab forecast model.safetensors --lr 1e-5 --weight-decay 0.1
    precisionlab forecast model/ --lr 0.1 --optimizer sgd --update-size 1e-6
    """  # noqa: D301
    from precisionlab import checkpoints
    from precisionlab.numerics.formats import FORMATS
    from precisionlab.runs.results import plain
    from precisionlab.runs.summary import table

    if optimizer not in checkpoints.OPTIMIZERS:
        allowed = allowed_names(optimizer, sorted(checkpoints.OPTIMIZERS))
        raise Failure(f'--optimizer: unknown optimizer "{optimizer}"; {allowed}', 2)
    if update_size is None and not checkpoints.OPTIMIZERS[optimizer]:
        raise Failure(f"--optimizer {optimizer}: its updates have no size known beforehand; give one with --update-size.", 2)
    names = list(dict.fromkeys(name.strip() for name in formats.split(",")))
    for name in names:
        if name not in FORMATS:
            raise Failure(f'--formats: unknown format "{name}"; {allowed_names(name, sorted(FORMATS))}', 2)
    _check_plot(plot)
    around = [10 ** (exponent / 40) * lr for exponent in range(-120, 121)] if plot and lr > 0 else []
    try:
        found = checkpoints.forecast(
            checkpoint,
            lr,
            update_size=update_size,
            weight_decay=weight_decay,
            formats=[FORMATS[name] for name in names],
            other_lrs=around,
        )
    except checkpoints.CheckpointError as error:
        raise Failure(str(error), 2) from error
    if plot:
        tensor_plots = import_module("precisionlab.runs.tensor_plots")
        _save(tensor_plots.plot_forecast(around, found.pop("curves"), [*found["rows"], *found["totals"]], lr), plot)
    if as_json:
        terminal.answer(plain(found))
        return
    columns = ["tensor", "format", "entries", "lost_fraction", "half_lands_lr"]
    columns += ["decay_lost_fraction"] if weight_decay else []
    columns += [name for name in ("nonfinite", "overflowed") if any(row[name] for row in found["totals"])]
    rows = [*found["rows"], *found["totals"]]
    rows = [row | {"lost_fraction_low": row["low"], "lost_fraction_high": row["high"]} for row in rows]
    terminal.show_table(table(rows, columns), quantities=True)
    terminal.write(f"assumed: {found['assumption']}")
    if weight_decay:
        asked = lr * weight_decay
        terminal.write(f"weight decay alone asks for {asked:g} of each weight; up to 2^-(p+1) of it no format of p bits sees.")
    _say_apart(found)


def _check_plot(path: Path | None) -> None:
    """Refuse a picture that could not be saved, before anything is computed for it."""
    if path is None:
        return
    os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib
    suffixes = import_module("precisionlab.runs.drawing").PLOT_SUFFIXES
    if path.suffix.lower() not in suffixes:
        raise Failure(f"--plot: {path} ends in none of {', '.join(suffixes)}; name a file that does.", 2)
    check_writable("--plot", path)


def _save(axes: Any, path: Path) -> None:
    from precisionlab.runs import store

    try:
        import_module("precisionlab.runs.drawing").save_plot(axes, path)
    except store.RunError as error:
        reason = getattr(error.__cause__, "strerror", None) or "the disk refused it"
        raise Failure(f"--plot: {path} cannot be written ({reason.lower()}); name a file that can.", 2) from error
    terminal.say(f"plot saved in {path}")


def _say_apart(found: Mapping[str, Any]) -> None:
    """What was read of several, and what was not read."""
    for sentence in found["choices"]:
        terminal.say(sentence)
    for name, why in found["skipped"].items():
        terminal.say(f"skipped {name}: {why}")


@click.command("compare", short_help="What did not move between two checkpoints.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@PLOT
@JSON
def compare(a: Path, b: Path, plot: Path | None, as_json: bool) -> None:
    """Tell what moved from checkpoint A to checkpoint B, by the bits of their entries, of two dtypes by their values.

    Each is a .safetensors or .npz file, an index of shards, a folder with one of them, or an Orbax checkpoint
    (of a manager's steps the newest); pickles are never loaded.
    """
    from precisionlab import checkpoints
    from precisionlab.runs.results import plain
    from precisionlab.runs.summary import table

    _check_plot(plot)
    try:
        found = checkpoints.compare(a, b)
    except checkpoints.CheckpointError as error:
        raise Failure(str(error), 2) from error
    if plot:
        _save(import_module("precisionlab.runs.tensor_plots").plot_unchanged(found["rows"]), plot)
    if as_json:
        terminal.answer(plain(found))
        return
    rows = [*found["rows"], {"tensor": "total", **found["total"]}]
    columns = ["tensor", "dtype", "entries", "unchanged_fraction", "one_ulp_fraction", "constant"]
    columns += ["nonfinite"] if found["total"]["nonfinite"] else []
    terminal.show_table(table(plain(rows), columns), quantities=True)
    terminal.write(f"{len(found['unmoved'])} of {len(found['rows'])} tensors did not move at all.")
    for side in ("a", "b"):
        for name in found[f"only_in_{side}"]:
            terminal.say(f"skipped {name}: it is in {found[side]} alone")
    _say_apart(found)
