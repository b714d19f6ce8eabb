"""The contrast: where a computed cross-entropy vanishes, beside the law."""

import numpy as np
from matplotlib.axes import Axes

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import ABOVE, BLUE, DOT, GREEN, VERMILION, finished
from precisionlab.stagnation.margins import FORMS

__all__ = ["draw_margins"]

_COLOURS = {"tail": GREEN, "sum": BLUE, "normalizer": VERMILION}
_LAWS = (
    ("softplus", "loss of softplus, log1p, sigmoid; all other gradients: (p - emin) ln 2"),
    ("log_softmax", "loss of log_softmax, one-hot, naive; label's gradient of softmax forms: p ln 2"),
    ("integer_labels", "loss of integer labels: (p - a) ln 2, logit in [2^a, 2^(a+1))"),
)
"""A form for each kind of threshold, and where else this one holds."""


def draw_margins(measured: Measured, axes: Axes) -> Axes:
    """Threshold margins against significand bits: searched and trained ones on the lines of the law."""
    bits = np.asarray(measured.coords["margins_bits"])
    found, predicted = (measured.arrays[f"margins_{name}"].values for name in ("found", "predicted"))
    forms = list(measured.coords["margins_form"])
    for form, meaning in _LAWS:
        if form in forms:
            axes.plot(bits, predicted[:, forms.index(form), 0], color=_COLOURS[FORMS[form].loss], lw=1.6, label=meaning)
    for index, name in enumerate(forms):
        axes.plot(bits, found[:, index, 0], "o", color=_COLOURS[FORMS[name].loss], **DOT)
    before, after = (measured.arrays[f"margins_{name}"].values for name in ("before", "after"))
    for row in range(len(before)):
        label = "training: last margin with a loss, first without (each seed)" if row == 0 else None
        axes.plot(bits, after[row], "_", color="black", ms=14, alpha=0.5, label=label, zorder=4)
        axes.plot(bits, before[row], "_", color="black", ms=14, alpha=0.5, zorder=4)
    axes.plot([], [], "o", color="0.5", label="found by search, with every operation rounded")
    axes.set(xlabel="significand bits p (8 exponent bits)", ylabel="margin from which the computed loss is exactly 0")
    axes.set(xticks=bits, ylim=(0, None))
    return finished(axes, **ABOVE)
