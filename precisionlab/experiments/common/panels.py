"""What the pictures of the measurements share: colours by name, marks, and how a panel is finished."""

from typing import Any, Literal

from matplotlib.axes import Axes

from precisionlab.runs.drawing import BESIDE, COLOURS

__all__ = ["ABOVE", "AMBER", "BELOW", "BLUE", "DOT", "GREEN", "PINK", "SKY", "VERMILION", "finished"]

BLUE, VERMILION, GREEN, PINK, AMBER, SKY = COLOURS[1:7]
ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.01), "borderaxespad": 0.0}
"""Arguments of a legend that stands above its axes."""
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 2, "fontsize": "small"}
"""Arguments of a legend that stands below its axes and their label."""
DOT: dict[str, Any] = {"ms": 6, "mec": "white", "mew": 0.8, "zorder": 3}
"""Arguments of marks that stand out from the lines beneath them."""


def finished(axes: Axes, *, grid: Literal["both", "x", "y"] = "both", **legend: Any) -> Axes:
    """Axes with a light grid and a legend, beside them unless its arguments say otherwise.

    Args:
        axes: with everything drawn and labelled.
        grid: the axis whose lines are shown.
        **legend: arguments of the legend.

    Returns:
        The axes.
    """
    axes.grid(alpha=0.25, axis=grid)
    axes.legend(**{"frameon": False, **(legend or BESIDE)})
    return axes
