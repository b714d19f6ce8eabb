"""Plots say what the numbers say; each is drawn without a window."""

import warnings
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from precisionlab.runs.plots import plot_fates, plot_histogram, plot_loss, plot_stagnation
from precisionlab.runs.results import Labelled, Result
from precisionlab.runs.summary import band

FORMATS, MODES = ("float32", "bfloat16", "float8_e4m3fn"), ("nearest_even", "stochastic")
DIMS = ("format", "mode", "seed", "step")


@pytest.fixture(autouse=True)
def _quiet_and_closed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    plt.close("all")


def example(seeds: int = 4, steps: int = 30) -> Result:
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 0.9, size=(len(FORMATS), len(MODES), seeds, steps))
    coords = {"format": FORMATS, "mode": MODES, "seed": range(seeds), "step": np.arange(steps) * 10}
    arrays = {"stagnated_fraction": Labelled(DIMS, values), "loss": Labelled(DIMS, values)}
    return Result("demo", {}, coords, arrays)


@pytest.mark.parametrize(("plot", "name"), [(plot_stagnation, "stagnated_fraction"), (plot_loss, "loss")])
def test_curves_are_means_over_seeds_in_their_band(plot, name: str) -> None:
    result = example()
    values = result.arrays[name].values
    _, ax = plt.subplots()
    assert plot(result, ax=ax) is ax
    lines = {line.get_label(): line for line in ax.lines}
    assert len(lines) == 6
    for i, kind in enumerate(FORMATS):
        for j, mode in enumerate(MODES):
            line = lines[f"{kind}, {mode}"]
            np.testing.assert_array_equal(line.get_xdata(), np.arange(30) * 10)
            np.testing.assert_allclose(np.asarray(line.get_ydata()), values[i, j].mean(axis=0))
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 6
    low, high = band(np.moveaxis(values[0, 0], 0, -1))
    heights = np.asarray(ax.collections[0].get_paths()[0].vertices)[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [low.min(), high.max()])
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [*FORMATS, "nearest even", "stochastic"]
    assert "4 seeds" in legend.get_title().get_text()
    assert ax.get_xlabel() == "step"
    assert ax.get_ylabel()


def test_the_order_of_axes_does_not_matter() -> None:
    result = example()
    turned = Labelled(("step", "seed", "mode", "format"), result.arrays["loss"].values.T)
    other = Result("demo", {}, result.coords, {"loss": turned})
    for one, two in zip(plot_loss(result).lines, plot_loss(other).lines, strict=True):
        np.testing.assert_allclose(np.asarray(one.get_ydata()), np.asarray(two.get_ydata()))


@pytest.mark.parametrize("plot", [plot_stagnation, plot_loss])
def test_legend_stands_beside_the_data(plot) -> None:
    ax = plot(example())
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1
    assert ax.get_legend().get_window_extent().x1 <= ax.figure.bbox.x1


def test_one_seed_has_no_band() -> None:
    ax = plot_loss(example(seeds=1))
    assert ax.get_legend().get_title().get_text() == "one seed"  # pyright: ignore[reportOptionalMemberAccess]


def test_long_runs_are_thinned_and_keep_their_ends() -> None:
    x = np.asarray(plot_loss(example(seeds=2, steps=5000)).lines[0].get_xdata())
    assert len(x) == 400
    assert (x[0], x[-1]) == (0, 49990)


def test_a_loss_that_is_lost_ends_in_a_cross() -> None:
    result = example()
    result.arrays["loss"].values[2, 0, 1, 12:] = np.nan
    result.arrays["loss"].values[1, 1] = np.inf
    ax = plot_loss(result)
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [float(np.asarray(cross.get_xdata())[0]) for cross in crosses] == [110.0]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]  # pyright: ignore[reportOptionalMemberAccess]
    assert texts[-1] == "not finite from here"
    assert ax.get_yscale() == "log"


def test_a_short_logarithmic_axis_has_plain_labels() -> None:
    ax = plot_loss(example())
    ax.figure.canvas.draw()
    shown = {label.get_text() for label in [*ax.get_yticklabels(), *ax.get_yticklabels(minor=True)]}
    assert {"0.2", "0.5"} <= shown
    assert not any("e" in text or "$" in text for text in shown)


def test_a_loss_of_zero_is_drawn_on_a_linear_axis() -> None:
    result = example()
    result.arrays["loss"].values[0, 0, 0, -1] = 0.0
    assert plot_loss(result).get_yscale() == "linear"


def test_missing_arrays_are_named() -> None:
    with pytest.raises(KeyError, match='no array "loss"'):
        plot_loss(Result("demo", {}, {}, {}))
    with pytest.raises(ValueError, match="allowed are format, mode, seed and step"):
        plot_loss(Result("demo", {}, {"step": [0]}, {"loss": Labelled(("step",), np.zeros(1))}))


def test_fates_are_shares_of_all_entries() -> None:
    ax = plot_fates({"landed": 50, "swamped": 30, "underflowed": 5, "zero": 15})
    widths = [patch.get_width() for patch in ax.patches]  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(widths, [50, 30, 5, 15])
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["50 %", "30 %", "15 %", "100 entries"]


def test_fates_of_several_leaves() -> None:
    counts = {"a": {"landed": 1, "swamped": 3}, "b": {"zero": 2}, "c": {"landed": 0}}
    ax = plot_fates(counts)
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    widths = np.reshape([patch.get_width() for patch in ax.patches], (4, 3))  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(widths.T, [[25, 75, 0, 0], [0, 0, 0, 100], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match='unknown fate "lost"'):
        plot_fates({"lost": 1})


def test_histogram_draws_the_landing_line() -> None:
    edges = np.array([-np.inf, -2, -1, 0, np.inf])
    counts = np.array([5, 4, 3, 2])
    ax = plot_histogram(edges, counts)
    bars = [(p.get_x(), p.get_width(), p.get_height()) for p in ax.patches]  # pyright: ignore[reportAttributeAccessIssue]
    assert bars == [(-3, 1, 5), (-2, 1, 4), (-1, 1, 3), (0, 1, 2)]
    colours = [patch.get_facecolor() for patch in ax.patches]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert np.asarray(ax.lines[0].get_xdata()).tolist() == [-1, -1]
    np.testing.assert_array_equal(edges, [-np.inf, -2, -1, 0, np.inf])  # the caller's edges stay as they were
    with pytest.raises(ValueError, match="one more edge"):
        plot_histogram([0, 1], [1, 2])
