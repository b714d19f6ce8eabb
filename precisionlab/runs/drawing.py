"""What pictures share: colours, line styles, where a legend stands, and how a picture becomes a file.

Colours stay apart for colour-blind eyes (Okabe, Ito). Legends stand beside the data, never on it.
"""

import io
import re
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from precisionlab.runs.files import write_atomically

__all__ = ["BESIDE", "COLOURS", "FATE_COLOURS", "PLOT_SUFFIXES", "STYLES", "ink", "inline_svg", "new_axes", "save_plot"]

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#882255")
STYLES = ("-", "--", ":", "-.")
FATE_COLOURS = {"landed": "#009E73", "swamped": "#D55E00", "underflowed": "#CC79A7", "zero": "#BBBBBB"}
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0, "frameon": False}
"""Arguments of a legend that stands to the right of its axes."""
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
"""What `save_plot` can write."""


def new_axes(ax: Axes | None, height: float = 4.5, width: float = 8.0) -> Axes:
    """The axes given, or those of a new figure of this size in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def ink(colour: str) -> str:
    """Black or white, whichever can be read on `colour`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def save_plot(ax: Axes, path: Path) -> None:
    """Write the figure around axes to a file, in full or not at all, and close it.

    Args:
        ax: what a plot function returned.
        path: a file that ends in one of `PLOT_SUFFIXES`; its folder exists.

    Raises:
        RunError: if it cannot be written.
    """
    figure: Any = ax.figure
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # names may be in any script
            write_atomically(
                path, lambda file: figure.savefig(file, format=path.suffix.lower()[1:], dpi=150, bbox_inches="tight")
            )
    finally:
        plt.close(figure)


def inline_svg(figure: Any, name: str, label: str) -> str:
    """A figure as an SVG element that can stand in a page beside others, and close it.

    Args:
        figure: a matplotlib figure.
        name: begins every id in the element; another one for each figure of a page. Letters, digits and hyphens.
        label: what a screen reader says of it.

    Returns:
        The element, without a prologue, namespaces, metadata or style sheet; text as shapes, so that it looks the same
        everywhere. The same figure gives the same text.

    Raises:
        ValueError: if the name cannot begin an id.

    Example:
        >>> figure, ax = plt.subplots()
        >>> 'role="img" aria-label="nothing yet"' in inline_svg(figure, "first", "nothing yet")
        True
    """
    if not re.fullmatch("[A-Za-z][A-Za-z0-9-]*", name):
        raise ValueError(f'inline_svg: name is "{name}", allowed are letters, digits and hyphens after a first letter.')
    buffer = io.BytesIO()
    try:
        with plt.rc_context({"svg.hashsalt": "precisionlab", "svg.fonttype": "path"}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    finally:
        plt.close(figure)
    root = ElementTree.fromstring(buffer.getvalue())  # drops comments, which repeat every text
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):  # a style sheet would be the whole page's
                parent.remove(child)
    box, width = root.get("viewBox", ""), root.get("width", "")
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value.replace("url(#", f"url(#{name}-") for key, value in element.attrib.items()}
        if "id" in attributes:
            attributes["id"] = f"{name}-{attributes['id']}"
        if attributes.get("href", "").startswith("#"):
            attributes["href"] = f"#{name}-{attributes['href'][1:]}"
        element.attrib.clear()
        element.attrib.update(attributes)
    root.attrib.clear()
    root.attrib.update(viewBox=box, role="img", **{"aria-label": label, "style": f"max-width: {width}"})
    return ElementTree.tostring(root, "unicode")


def _local(name: str) -> str:
    """A name without its namespace, which HTML knows by itself."""
    return name.rpartition("}")[2]
