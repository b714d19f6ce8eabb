"""A run as one page: the verdict and its claims first, then the figures and the table, configuration and provenance last.

The page is one HTML file that needs nothing else: no script, no style sheet, no font and no picture from elsewhere. It says
nothing of when it was made, so that the same run gives the same bytes. What is shown comes from the `Result` and from the
caller; this module knows no experiment.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from precisionlab.runs.results import Claim, Result, plain
from precisionlab.runs.summary import number, table

__all__ = ["report_page"]

_OUTCOMES = {True: ("held", "✓", "held"), False: ("failed", "✗", "not held"), None: ("undecided", "?", "undecided")}


def report_page(
    result: Result,
    figures: Mapping[str, str],
    *,
    question: str = "",
    columns: Sequence[str] | None = None,
    name: str = "",
    created: str = "",
) -> str:
    """The page.

    Args:
        result: what to show.
        figures: SVG elements by caption, as `drawing.inline_svg` makes them; put into the page as they are.
        question: what the experiment asked; its name by default.
        columns: which columns of the rows to show, in order; all by default.
        name: the run's name.
        created: when it was begun.

    Returns:
        The HTML document. Every text that comes from the result is escaped.

    Example:
        >>> page = report_page(Result("demo", {"lr": 0.1}, {}, {}, verdict="a < b"), {})
        >>> "a &lt; b" in page, "<script" in page
        (True, False)
    """
    shown = table(result.rows, columns) if result.rows else [[]]
    seeds = len(result.coords.get("seed", ()))
    noise = f" In brackets: the 95 % interval over {seeds} seeds." if seeds > 1 else ""
    numeric = [all(_is_number(cell) for cell in column) for column in zip(*shown[1:], strict=True)]
    about = [f"experiment {result.experiment}", f"run {name}" if name else "", f"begun {created}" if created else ""]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.jinja").render(
        experiment=result.experiment,
        question=question,
        about=", ".join(part for part in about if part),
        verdict=result.verdict,
        tally=_tally(result.claims),
        claims=[_claim(claim) for claim in result.claims],
        noise=noise,
        figures=[{"caption": caption, "svg": markupsafe.Markup(svg)} for caption, svg in figures.items()],
        header=list(zip(shown[0], numeric, strict=False)),
        cells=[[_cell(text, kind) for text, kind in zip(row, numeric, strict=True)] for row in shown[1:]],
        table_note=f"Means over the seeds.{noise}" if noise else "What was measured.",
        ends=[("Configuration", list(_facts(result.config))), ("Provenance", list(_facts(result.provenance)))],
    )


def _claim(claim: Claim) -> dict[str, str]:
    kind, sign, outcome = _OUTCOMES[None if claim.held is None else bool(claim.held)]
    if claim.says:  # nobody's prediction failed who only lost to another
        kind, sign, outcome = "sides", "", claim.says
    measured = number(claim.measured, claim.low, claim.high)
    words = {"name": claim.name, "predicted": number(claim.predicted), "measured": measured}
    return {"kind": kind, "mark": sign, "outcome": outcome, **words}


def _tally(claims: Sequence[Claim]) -> str:
    alone, sides = [claim for claim in claims if not claim.says], Counter(claim.says for claim in claims if claim.says)
    counts = [sum(claim.held is None if held is None else claim.held == held for claim in alone) for held in _OUTCOMES]
    told = f"Of {len(alone)} claims {counts[0]} held, {counts[1]} did not, and {counts[2]} stayed undecided."
    between = ", ".join(f"{count} say {says}" for says, count in sorted(sides.items()))
    return f"{told} Of {sides.total()} with a prediction of each side {between}." if sides else told


def _is_number(text: str) -> bool:
    """Whether a cell of `summary.table` shows a number, with or without an interval, or that there is none."""
    try:
        float(text.partition(" [")[0])
    except ValueError:
        return text == "-"
    return True


def _cell(text: str, numeric: bool) -> dict[str, Any]:
    """A number apart from its interval, which stands below it, so that columns stay narrow."""
    value, bracket, bounds = text.partition(" [") if numeric else (text, "", "")
    return {"text": value, "bounds": f"[{bounds}" if bracket else "", "numeric": numeric}


def _facts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested keys with a dot between them, and values as JSON where they are not text."""
    for key, value in plain(values).items():
        if isinstance(value, dict) and value:
            yield from _facts(value, f"{prefix}{key}.")
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            yield f"{prefix}{key}", ", ".join(value)
        else:
            yield f"{prefix}{key}", (value or "(empty)") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
