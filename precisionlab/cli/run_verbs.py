"""The verbs about runs that are kept: `list`, `show` and `report`, and how a result is printed.

Like all verbs they parse, call one public function and print; what is slow to import is imported when they are called.
"""

import json
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precisionlab.cli import terminal
from precisionlab.cli.options import JSON, RUNS, check_writable

if TYPE_CHECKING:
    from precisionlab.runs.results import Result
    from precisionlab.runs.store import Run

__all__ = ["list_", "print_result", "report", "show"]


def print_result(found: "Result", columns: Sequence[str] | None) -> None:
    """The verdict, then the claims, then the rows (all of their columns if None)."""
    from precisionlab.runs.summary import number, table

    terminal.tell(found.verdict)
    if found.claims:
        words = {True: "held", False: "not held", None: "undecided"}
        rows = [
            [
                "" if c.says else terminal.mark(c.held),
                c.says or words[c.held],
                c.name,
                number(c.predicted),
                number(c.measured, c.low, c.high),
            ]
            for c in found.claims
        ]
        terminal.show_records([["", "", "claim", "predicted", "measured"], *rows])
    if found.rows:
        terminal.show_table(table(found.rows, columns), quantities=True)


@click.command("list", short_help="List the runs.")
@RUNS
@JSON
def list_(root: Path, as_json: bool) -> None:
    """List the runs, oldest first; damaged ones are named as such."""
    from precisionlab.cli.running import sentences
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


@click.command(short_help="Show a run, or query its records.")
@click.argument("name", metavar="RUN")
@click.option("--sql", help="Ask the records in SQL (DuckDB); they are the view `records`.")
@RUNS
@JSON
def show(name: str, sql: str | None, root: Path, as_json: bool) -> None:
    """Show RUN: the beginning of its name, its folder, or `latest`.

    \b
    precisionlab show latest --sql "SELECT * FROM records LIMIT 5"
    """  # noqa: D301
    from precisionlab.cli.running import sentences
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
        known = _known(found.experiment)
        print_result(shown, known.columns if known else None)
    else:
        terminal.say(f"{found.folder} is not finished; run the same command again to resume it.")
    terminal.write(f"experiment  {found.experiment}")
    terminal.write(f"run         {found.folder}")
    terminal.write(f"created     {found.record['created'][:19]} UTC")
    terminal.write(f"config      {json.dumps(found.config)}")
    for kind, name in (("figure", "figure.png"), ("report", "report.html")):
        if (found.folder / name).exists():
            terminal.write(f"{kind}      {found.folder / name}")
    if done:
        terminal.say(f"as one page, with its figures: precisionlab report {found.folder}")


def _known(experiment: str) -> Any:
    """The experiment of that name; None where this version does not know it."""
    return import_module("precisionlab.experiments").EXPERIMENTS.get(experiment)


def _show_query(found: "Run", columns: Mapping[str, Any], as_json: bool) -> None:
    from precisionlab.runs.results import plain
    from precisionlab.runs.summary import table

    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if as_json:
        terminal.answer({"experiment": found.experiment, "run": str(found.folder), "rows": plain(rows)})
        return
    terminal.show_table(table(rows, list(columns)), quantities=True)


@click.command(short_help="Write a run as one HTML page.")
@click.argument("name", metavar="RUN")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to write it; by default report.html in the run's folder."
)
@RUNS
@JSON
def report(name: str, output: Path | None, root: Path, as_json: bool) -> None:
    """Write RUN as one page: the verdict and its claims first, then the figures, configuration and provenance last.

    RUN is the beginning of its name, its folder, or `latest`. The page is one file that needs nothing else, neither scripts
    nor the network.

    \b
    precisionlab report latest --output report.html
    """  # noqa: D301
    from precisionlab.cli.running import sentences, svgs
    from precisionlab.runs import store

    os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib
    if output is not None:
        check_writable("--output", output)
    with sentences():
        found = store.find_run(root, name)
        result = store.load_result(found)
        known = _known(found.experiment)
        if known is None:
            terminal.say(f'note: this version knows no experiment "{found.experiment}"; the report has no figures.')
        page = import_module("precisionlab.runs.report").report_page(
            result,
            svgs(known.figures, result) if known else {},
            question=known.question if known else "",
            columns=known.columns if known else None,
            name=found.folder.name,
            created=f"{found.record['created'][:19].replace('T', ' ')} UTC",
        )
        path = found.folder / "report.html" if output is None else output
        store.write_atomically(path, lambda file: file.write(page.encode()))
    if as_json:
        terminal.answer({"experiment": found.experiment, "run": str(found.folder), "report": str(path)})
        return
    terminal.write(f"report  {path}")
