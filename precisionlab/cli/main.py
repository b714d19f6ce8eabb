"""The command line: parse, call one public function, print.

A mistake is answered with one sentence on standard error. Exit status: 0 done, 2 the request was wrong, 1 the run
failed, 130 interrupted, and the same command resumes. Every command imports what it needs when it is called, so that
`--help` is quick; JAX and the experiments are the slow part.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

try:
    import click

    from precisionlab.cli import terminal
except ImportError as absent:
    raise SystemExit(f"precisionlab: {absent}; install the command line: pip install 'precisionlab[lab]'") from absent
from precisionlab._nearest import allowed_names
from precisionlab.cli.checkpoint_verbs import compare, forecast
from precisionlab.cli.options import JSON, RUNS
from precisionlab.cli.run_verbs import list_, print_result, report, show
from precisionlab.cli.terminal import Failure

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
    precisionlab report latest     the run as one page, with its figures
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
@click.option("--full", is_flag=True, help="A larger version that decides more, in much more time.")
@click.option("--fresh", is_flag=True, help="Delete what this very run has stored, and start again.")
@click.option(
    "--no-cache",
    is_flag=True,
    envvar="PRECISIONLAB_NO_CACHE",
    help="Compile every program anew and keep none beside the runs; also PRECISIONLAB_NO_CACHE=1.",
)
@RUNS
@JSON
def run(
    experiment: str | None,
    file: Path | None,
    settings: tuple[str, ...],
    placement: str | None,
    quick: bool,
    full: bool,
    fresh: bool,
    no_cache: bool,
    root: Path,
    as_json: bool,
) -> None:
    """Run EXPERIMENT (the main one by default), or show it again if it was run before.

    A setting given by --set wins over --quick and --full, these over the file, that over the defaults. An interrupted
    run resumes when the same command is given again. What was compiled is kept in the folder of runs (in .compiled,
    unless JAX_COMPILATION_CACHE_DIR names another place), so that other runs of the same programs need not compile again.

    \b
    precisionlab run digits --set formats=float32,bfloat16 --set seeds=4
    precisionlab run bytes --quick --placement all
    """  # noqa: D301
    from precisionlab.cli.running import completed, draw, experiment_named, placed, requested_config, sentences, sized
    from precisionlab.runs import results

    # Figures go to files: no window system is needed, and none is asked. Set before anything imports matplotlib.
    os.environ.setdefault("MPLBACKEND", "Agg")
    chosen = experiment_named(experiment)
    with sentences():
        config = requested_config(chosen, file, placed(chosen, placement, settings), sized(chosen, quick, full))
        opened, found = completed(chosen, config, root, fresh, cache=not no_cache)
    figure = draw(chosen.figures, found, opened.folder)
    if as_json:
        terminal.answer(results.to_json_object(found, opened.folder))
        return
    print_result(found, chosen.columns)
    terminal.write(f"run     {opened.folder}")
    if figure:
        terminal.write(f"figure  {figure}")
    terminal.say(f"see it again with: precisionlab show {opened.folder}")
    terminal.say(f"as one page, with its figures: precisionlab report {opened.folder}")


@cli.command(short_help="What this backend does to small numbers.")
@JSON
def selftest(as_json: bool) -> None:
    """Tell what this machine's backend does to small numbers, and what precisionlab does about it."""
    try:
        checks = import_module("precisionlab.backend.selftest").run_checks()
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


for _verb in (list_, show, report, forecast, compare):
    cli.add_command(_verb)
