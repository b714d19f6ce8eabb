"""The command line: parse, call one public function, print.

A mistake is answered with one sentence on standard error. Exit status: 0 done, 2 the request was wrong, 1 the run
failed, 130 interrupted, and the same command resumes. Every command imports what it needs when it is called, so that
`--help` is quick; JAX and the experiments are the slow part.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

try:
    import click

    from precisionlab import _terminal as terminal
except ImportError as absent:
    raise SystemExit(f"precisionlab: {absent}; install the command line: pip install 'precisionlab[lab]'") from absent
from precisionlab._nearest import allowed_names
from precisionlab._terminal import Failure

if TYPE_CHECKING:
    from precisionlab.runs.results import Result
    from precisionlab.runs.store import Run

__all__ = ["cli", "main"]


class _Verbs(click.Group):
    """Answers an unknown verb with the nearest right one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise Failure(f'unknown command "{args[0]}"; {allowed_names(args[0], self.list_commands(ctx))}', 2)
        return super().resolve_command(ctx, args)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: what follows the program's name; the process's own by default.
    """
    try:
        status = cli.main(arguments, "precisionlab", standalone_mode=False) or 0
    except Failure as failure:
        status = _fail(str(failure), failure.status)
    except click.Abort:  # click's name for Ctrl-C
        status = _fail("interrupted; the same command starts again where it stopped.", 130)
    except click.ClickException as error:
        status = _fail(error.format_message().replace("\n", " "), error.exit_code)
    sys.exit(status)


def _fail(sentence: str, status: int) -> int:
    terminal.say(f"precisionlab: {sentence}")
    return status


_RUNS = click.option(
    "--runs",
    "root",
    type=click.Path(path_type=Path),
    envvar="PRECISIONLAB_RUNS",
    default="runs",
    show_default=True,
    help="Folder that holds all runs; also PRECISIONLAB_RUNS.",
)
_PLOT = click.option("--plot", type=click.Path(path_type=Path), help="Draw it, too: a .png, .svg or .pdf file.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output; null is NaN or inf.")


@click.group(
    cls=_Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="precisionlab")
@click.pass_context
def cli(context: click.Context) -> None:
    """What a number format does to training: exact roundings, and a count of the updates that they lose.

    \b
    precisionlab run --quick       a small version of the main experiment
    precisionlab run               the main experiment itself
    precisionlab list              what has been run
    precisionlab show latest       a run again, with its table and verdict
    precisionlab forecast FILE --lr 1e-5   what a checkpoint's weights would lose of their updates
    precisionlab compare A B       what did not move between two checkpoints
    precisionlab selftest          what this machine does to small numbers
    """  # noqa: D301  (click reads the character itself as: do not wrap what follows)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command(short_help="Run an experiment, or show it again.")
@click.argument("experiment", required=False)
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML or JSON file with the configuration.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set one key; may be repeated.")
@click.option("--placement", metavar="NAME", help="What is rounded: weights, gradients (and weights), or all (arithmetic too).")
@click.option("--quick", is_flag=True, help="A smaller version that shows the same things in less time.")
@click.option("--fresh", is_flag=True, help="Delete what this very run has stored, and start again.")
@_RUNS
@_JSON
def run(
    experiment: str | None,
    file: Path | None,
    settings: tuple[str, ...],
    placement: str | None,
    quick: bool,
    fresh: bool,
    root: Path,
    as_json: bool,
) -> None:
    """Run EXPERIMENT (the main one by default), or show it again if it was run before.

    A setting given by --set wins over --quick, that over the file, that over the defaults. An interrupted run resumes
    when the same command is given again.

    \b
    precisionlab run digits --set formats=float32,bfloat16 --set seeds=4
    precisionlab run bytes --quick --placement all
    """  # noqa: D301
    from precisionlab._running import completed, draw, experiment_named, placed, requested_config, sentences
    from precisionlab.runs import results

    # Figures go to files: no window system is needed, and none is asked. Set before anything imports matplotlib.
    os.environ.setdefault("MPLBACKEND", "Agg")
    chosen = experiment_named(experiment)
    with sentences():
        config = requested_config(chosen, file, placed(chosen, placement, settings), quick)
        opened, found = completed(chosen, config, root, fresh)
    figure = draw(chosen.figure, found, opened.folder)
    if as_json:
        terminal.answer(results.to_json_object(found, opened.folder))
        return
    _print_result(found, chosen.columns)
    terminal.write(f"run     {opened.folder}")
    if figure:
        terminal.write(f"figure  {figure}")
    terminal.say(f"see it again with: precisionlab show {opened.folder}")


def _print_result(found: "Result", columns: Sequence[str] | None) -> None:
    from precisionlab.runs.summary import number, table

    terminal.write(found.verdict)
    if found.claims:
        words = {True: "held", False: "not held", None: "undecided"}
        rows = [
            [terminal.mark(c.held), words[c.held], c.name, number(c.predicted), number(c.measured, c.low, c.high)]
            for c in found.claims
        ]
        terminal.show_table([["", "", "claim", "predicted", "measured"], *rows])
    if found.rows:
        terminal.show_table(table(found.rows, columns))


@cli.command("list", short_help="List the runs.")
@_RUNS
@_JSON
def list_(root: Path, as_json: bool) -> None:
    """List the runs, oldest first; damaged ones are named as such."""
    from precisionlab._running import sentences
    from precisionlab.runs import store

    with sentences():
        runs, bad = store.list_runs(root), store.damaged_runs(root)
    listed: list[dict[str, Any]] = [
        {
            "run": str(found.folder),
            "experiment": found.experiment,
            "status": store.status(found),
            "created": found.record["created"],
            "verdict": store.verdict(found),
        }
        for found in runs
    ]
    listed += [
        {"run": str(folder), "experiment": None, "status": "damaged", "created": None, "verdict": None, "problem": why}
        for folder, why in bad
    ]
    if as_json:
        terminal.answer({"runs": listed})
        return
    if not listed:
        terminal.say(f"no runs in {root} yet; precisionlab run --quick makes one.")
        return
    keys = ("run", "experiment", "status", "created", "verdict")
    rows = [[str(item[key] or "-") for key in keys] for item in listed]
    cells = [[Path(name).name, kind, status, created[:19], verdict] for name, kind, status, created, verdict in rows]
    terminal.show_table([["run", "experiment", "status", "created (UTC)", "verdict"], *cells])
    for item in listed:
        if "problem" in item:
            terminal.say(item["problem"])


@cli.command(short_help="Show a run, or query its records.")
@click.argument("name", metavar="RUN")
@click.option("--sql", help="Ask the records in SQL (DuckDB); they are the view `records`.")
@_RUNS
@_JSON
def show(name: str, sql: str | None, root: Path, as_json: bool) -> None:
    """Show RUN: the beginning of its name, its folder, or `latest`.

    \b
    precisionlab show latest --sql "SELECT * FROM records LIMIT 5"
    """  # noqa: D301
    from precisionlab._running import sentences
    from precisionlab.runs import results, store

    with sentences():
        found = store.find_run(root, name)
        if sql is not None:
            _show_query(found, store.query(found, sql), as_json)
            return
        done = store.status(found) == "done"
        shown = store.load_result(found) if done else results.Result(found.experiment, {}, {}, {})
    if as_json:
        answer = results.to_json_object(shown, found.folder)
        answer |= {"config": found.config, "provenance": shown.provenance if done else found.record["provenance"]}
        terminal.answer(results.plain(answer if done else answer | {"verdict": None}))
        return
    if done:
        _print_result(shown, _columns(found.experiment))
    else:
        terminal.say(f"{found.folder} is not finished; run the same command again to resume it.")
    terminal.write(f"experiment  {found.experiment}")
    terminal.write(f"run         {found.folder}")
    terminal.write(f"created     {found.record['created'][:19]} UTC")
    terminal.write(f"config      {json.dumps(found.config)}")
    if (found.folder / "figure.png").exists():
        terminal.write(f"figure      {found.folder / 'figure.png'}")


def _columns(experiment: str) -> Sequence[str] | None:
    """The columns that `run` prints; all of them for an experiment that this version does not know."""
    known = import_module("precisionlab.experiments").EXPERIMENTS.get(experiment)
    return known.columns if known else None


def _show_query(found: "Run", columns: Mapping[str, Any], as_json: bool) -> None:
    from precisionlab.runs.results import plain
    from precisionlab.runs.summary import table

    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if as_json:
        terminal.answer({"experiment": found.experiment, "run": str(found.folder), "rows": plain(rows)})
        return
    terminal.show_table(table(rows, list(columns)))


@cli.command("forecast", short_help="Which updates a checkpoint's weights would lose.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--lr", type=float, required=True, help="Learning rate.")
@click.option("--optimizer", default="adamw", show_default=True, help="What trains it; Adam-like ones update by about --lr.")
@click.option("--update-size", type=float, help="|u| of an update, where the optimizer does not tell it.")
@click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Decoupled: it asks for lr * this * |w|.")
@click.option("--formats", default="bfloat16,float8_e4m3fn", show_default=True, help="Names of formats, with commas.")
@_PLOT
@_JSON
def forecast_(
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
    from precisionlab.formats import FORMATS
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
        plots = import_module("precisionlab.runs.plots")
        _save(plots.plot_forecast(around, found.pop("curves"), [*found["rows"], *found["totals"]], lr), plot)
    if as_json:
        terminal.answer(plain(found))
        return
    columns = ["tensor", "format", "entries", "lost_fraction", "half_lands_lr"]
    columns += ["decay_lost_fraction"] if weight_decay else []
    columns += [name for name in ("nonfinite", "overflowed") if any(row[name] for row in found["totals"])]
    rows = [*found["rows"], *found["totals"]]
    rows = [row | {"lost_fraction_low": row["low"], "lost_fraction_high": row["high"]} for row in rows]
    terminal.show_table(table(rows, columns))
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
    suffixes = import_module("precisionlab.runs.plots").PLOT_SUFFIXES
    if path.suffix.lower() not in suffixes:
        raise Failure(f"--plot: {path} ends in none of {', '.join(suffixes)}; name a file that does.", 2)
    if path.is_dir() or not path.absolute().parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.absolute().parent}"
        raise Failure(f"--plot: {path} cannot be written ({why}); name a file in a folder that exists.", 2)
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise Failure(f"--plot: {path} cannot be written (permission denied); name a file that can.", 2)


def _save(axes: Any, path: Path) -> None:
    from precisionlab.runs import store

    try:
        import_module("precisionlab.runs.plots").save_plot(axes, path)
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


@cli.command("compare", short_help="What did not move between two checkpoints.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@_PLOT
@_JSON
def compare_(a: Path, b: Path, plot: Path | None, as_json: bool) -> None:
    """Tell what moved from checkpoint A to checkpoint B, by the bits of their entries.

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
        _save(import_module("precisionlab.runs.plots").plot_unchanged(found["rows"]), plot)
    if as_json:
        terminal.answer(plain(found))
        return
    rows = [*found["rows"], {"tensor": "total", **found["total"]}]
    columns = ["tensor", "dtype", "entries", "unchanged_fraction", "one_ulp_fraction", "constant"]
    terminal.show_table(table(plain(rows), columns + (["nonfinite"] if found["total"]["nonfinite"] else [])))
    terminal.write(f"{len(found['unmoved'])} of {len(found['rows'])} tensors did not move at all.")
    for side in ("a", "b"):
        for name in found[f"only_in_{side}"]:
            terminal.say(f"skipped {name}: it is in {found[side]} alone")
    _say_apart(found)


@cli.command(short_help="What this backend does to small numbers.")
@_JSON
def selftest(as_json: bool) -> None:
    """Tell what this machine's backend does to small numbers, and what precisionlab does about it."""
    try:
        checks = import_module("precisionlab.selftest").run_checks()
    except Exception as error:
        raise Failure(f"selftest could not run: {terminal.first_line(error)}.", 1) from error
    fine = all(check.ok for check in checks)
    if as_json:
        from precisionlab.runs.results import plain

        terminal.answer({"ok": fine, "checks": [plain(check._asdict()) for check in checks]})
    else:
        for check in checks:  # sentences, which a table would squeeze
            terminal.write(f"{terminal.mark(bool(check.ok))} {check.name}")
            for line in (check.question, check.found, check.remedy):
                terminal.write(f"    {line}")
    if not fine:
        failed = ", ".join(check.name for check in checks if not check.ok)
        raise Failure(f"selftest: {failed} failed; the remedy beside each says what to do.", 1)
