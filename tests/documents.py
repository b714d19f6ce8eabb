"""Documents whose code runs and whose output is what it printed: `python -m tests.documents docs/PAGE.md` writes it anew.

A fenced block of Python runs in one session with those before it (or, if it begins with `# a program of its own`, in a
process of its own); a block of shell is a call of `precisionlab`. The block of text after it is what it printed, long lines
folded.
"""

import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

from precisionlab.runs.summary import number

WIDTH = 120
ALONE = "# a program of its own"


class Shown(NamedTuple):
    """A block of output, the lines of its document between the fences, and what its code prints."""

    first: int
    last: int
    said: str
    printed: str


def outputs(document: Path, folder: Path) -> Iterator[Shown]:
    """Run every block of a document, in a folder where it may write."""
    fences = [token for token in MarkdownIt().parse(document.read_text()) if token.type == "fence"]
    session: dict[str, Any] = {"__name__": "__main__"}
    ran = None
    for fence in fences:
        first, last = fence.map or (0, 0)
        if fence.info in ("python", "sh"):
            try:
                ran = _run(fence.content, fence.info, session, folder)
            except Exception as error:
                raise RuntimeError(f"{document}, line {first + 1}: {error}") from error
        elif fence.info in ("", "text") and ran is not None:
            yield Shown(first + 1, last - 1, fence.content, ran)
            ran = None


def _run(code: str, language: str, session: dict[str, Any], folder: Path) -> str:
    if language == "sh" or code.startswith(ALONE):
        command = [sys.executable, "-m", *code.split()] if language == "sh" else [sys.executable, "-c", code]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.chdir(folder):
        exec(compile(code, "<document>", "exec"), session)
    return printed.getvalue()


def folded(text: str) -> str:
    """Lines no longer than a page, what is folded indented; tables stay as they are."""
    return "\n".join(
        line.rstrip() if len(line) <= WIDTH else textwrap.fill(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        for line in text.strip("\n").splitlines()
    )


_NUMBER = re.compile(r"(?<![\w#])-?\d[\d,]*\.?\d*(?:e[-+]\d+)?")


def difference(said: str, printed: str, tolerance: float = 0.1) -> str | None:
    """The first word that differs, or number that does by more than a tenth: machines round sums in different orders."""
    ours, theirs = (" ".join(text.split()) for text in (said, printed))
    words, others = _NUMBER.sub("#", ours).split(), _NUMBER.sub("#", theirs).split()
    for place, (one, other) in enumerate(zip(words, others, strict=False)):
        if one != other:
            return f'"{" ".join(words[max(place - 5, 0) : place + 5])}", and it prints "{other}"'
    if len(words) != len(others):
        return f"it says {len(words)} words, and {len(others)} are printed"
    for one, other in zip(_NUMBER.findall(ours), _NUMBER.findall(theirs), strict=True):
        a, b = (float(number.replace(",", "").rstrip(".")) for number in (one, other))
        if abs(a - b) > tolerance * max(abs(a), abs(b)) + 0.02:
            return f"it says {one}, and {other} is printed"
    return None


def stored(run: str) -> dict[str, Any]:
    """A run that is kept in a folder, as `precisionlab show RUN --json` gives it; for the pages that cog writes."""
    folder = Path(run)
    command = [sys.executable, "-m", "precisionlab", "show", folder.name, "--runs", str(folder.parent), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def claims(found: dict[str, Any], *beginnings: str) -> str:
    """The claims of a run whose names begin so, as a table."""
    words = {True: "held", False: "not held", None: "undecided"}
    lines = ["| claim | predicted | measured | |", "|---|---|---|---|"]
    for claim in found["claims"]:
        if claim["name"].startswith(beginnings):
            bounds = [math.nan if claim[side] is None else claim[side] for side in ("low", "high")]
            predicted, measured = number(claim["predicted"]), number(claim["measured"], *bounds)
            name = claim["name"].replace("|", "\\|")
            lines.append(f"| {name} | {predicted} | {measured} | {claim.get('says') or words[claim['held']]} |")
    return "\n".join(lines)


def rows(found: dict[str, Any], **columns: str) -> str:
    """Columns of a run's rows under new titles, as a table."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    for row in found["rows"]:
        shown = []
        for name in columns:
            bounds = [row[f"{name}{side}"] for side in ("_low", "_high") if row.get(f"{name}{side}") is not None]
            bounds = bounds if len(bounds) == 2 else []
            shown.append("" if row[name] is None else row[name] if isinstance(row[name], str) else number(row[name], *bounds))
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    for name in sys.argv[1:]:
        document = Path(name)
        with tempfile.TemporaryDirectory() as folder:
            found = list(outputs(document, Path(folder)))
        lines = document.read_text().splitlines()
        for shown in reversed(found):
            lines[shown.first : shown.last] = folded(shown.printed).splitlines()
        document.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
