"""The page docs/what-is-simulated.md, from the tables of the simulation: `python -m tests.what_is_simulated` writes it.

It says nothing of the release of JAX that is installed: names of primitives that it lacks stand there all the same.
"""

import textwrap
from collections.abc import Iterable
from pathlib import Path

from precisionlab.arithmetic import complexes, operations, primitives
from precisionlab.arithmetic.expansions import table as expansions

PAGE = Path(__file__).parent.parent / "docs" / "what-is-simulated.md"


def page() -> str:
    """The whole page."""
    special = operations._SPECIAL
    once = primitives.ROUNDED - primitives.EXPANDED - primitives.FACTORIZATIONS - set(special) - set(expansions.EXPANSIONS)
    parts = [
        "# What is simulated, and how",
        "By primitive: `print(jax.make_jaxpr(fun)(*args))` shows those of a function. Some exist in some releases of JAX "
        "alone. This page is generated (`python -m tests.what_is_simulated`).",
        "## Exact",
        "What comes out was there before. (`neg` and `conj` round where a format has no -0, `abs` where its operand is "
        "complex.)",
        _names(primitives.EXACT),
        "## Rounded once",
        "Evaluated in the carrier, and rounded. + - * / and the square root are correctly rounded in every mode.",
        _names(once),
        "Those with more to them:",
        _table((name, special[name].__doc__) for name in special if name not in expansions.EXPANSIONS),
        "## Written out",
        "Every operation of a published algorithm is rounded. A rule for such a primitive "
        '(`Rules(fmt, primitives={"cholesky": FLOAT32})`) makes it one operation, rounded once.',
        _table((name, make.__doc__) for name, make in expansions.EXPANSIONS.items()),
        "Their derivative, taken from outside of `simulate`, is that of the real function (of `lu` and `reduce_window`, of "
        "their operations).",
        "## Factorizations that are one operation",
        "Made in the carrier by JAX's own algorithm; all that they give is rounded once.",
        _names(primitives.FACTORIZATIONS),
        "## Complex numbers",
        textwrap.dedent(complexes.__doc__ or "").strip(),
        "## Programs within the program",
        "Walked, whatever they hold. So is a primitive that stands nowhere here, if JAX tells what it is made of.",
        _names(primitives.STRUCTURAL),
        "A draw of `jax.random` is one operation; rounded step by step, a uniform number could become 1:",
        _names(primitives.SAMPLERS),
        "## Opaque",
        "They run as they are, in their own dtypes; their results are rounded once, with a warning, or refused with "
        "`Rules(strict=True)`. So is whatever else JAX does not describe.",
        _names(primitives.OPAQUE),
    ]
    return "\n\n".join(parts) + "\n"


def _names(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(f"`{name}`" for name in sorted(names)), 128, break_long_words=False, break_on_hyphens=False)


def _table(rows: Iterable[tuple[str, str | None]]) -> str:
    lines = []
    for name, text in sorted(rows):
        assert text, f"{name} does not say what it is"
        lines.append(f"| `{name}` | {text.splitlines()[0]} |")
    return "\n".join(["| primitive | |", "|---|---|", *lines])


if __name__ == "__main__":
    PAGE.write_text(page())
