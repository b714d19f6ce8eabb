"""The bridge: what an experiment hands over, and all that the store, the plots and the reports ever see.

A `Result` is arrays whose axes have names, labels for those axes, the table to print, the claims with their intervals,
and where it all came from. It is numpy and plain Python: the device half makes one, the host half needs nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from precisionlab._nearest import allowed_names

__all__ = ["Claim", "Labelled", "Result", "plain", "select", "to_columns", "to_json_object"]


class Claim(NamedTuple):
    """A prediction beside its measurement.

    Attributes:
        name: what is claimed, in a few words.
        predicted: the prediction, a number or a phrase such as "< 0.5".
        measured: the estimate over the seeds.
        low: lower end of the interval of `measured`; NaN where one seed allows none.
        high: upper end.
        held: whether the interval supports the prediction; None while it decides neither way, or where there are several.
        says: where several sides predict (`predicted` names them all), the side whose prediction was measured: its name,
            "both", "neither" or "undecided"; empty where there is one prediction.
    """

    name: str
    predicted: str | float
    measured: float
    low: float
    high: float
    held: bool | None
    says: str = ""


class Labelled(NamedTuple):
    """An array whose axes have names.

    Attributes:
        dims: the name of each axis, in order.
        values: the array.
    """

    dims: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Result:
    """What an experiment found, with everything needed to print, plot and question it.

    Attributes:
        experiment: name of the experiment.
        config: its configuration, as JSON-able values.
        coords: the labels of each named axis, such as `{"format": ["float32", "bfloat16"], "seed": [0, 1]}`.
        arrays: named arrays over those axes.
        rows: the table to print, one mapping a row; a quantity `x` may have `x_low` and `x_high` beside it.
        claims: predictions beside measurements.
        verdict: the answer, in a few sentences.
        decided: the answer for programs, as JSON-able values, where there is more to it than sentences; see `to_json_object`.
        provenance: versions, device, flags and git state; the store completes it.

    Raises:
        ValueError: if an array does not fit `coords`, or `config` is not JSON-able.
        TypeError: if `claims` holds anything but a `Claim`.

    Example:
        >>> loss = Labelled(("format", "seed"), np.array([[0.5, 0.7], [1.0, 2.0]]))
        >>> result = Result("demo", {"lr": 0.1}, {"format": ["a", "b"], "seed": [0, 1]}, {"loss": loss})
        >>> select(result, "loss", format="b").values
        array([1., 2.])
    """

    experiment: str
    config: Mapping[str, Any]
    coords: Mapping[str, Sequence[Any]]
    arrays: Mapping[str, Labelled]
    rows: tuple[Mapping[str, Any], ...] = ()
    claims: tuple[Claim, ...] = ()
    verdict: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    decided: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that every array fits its axes, and make the containers plain."""
        coords = {name: tuple(np.asarray(labels).tolist()) for name, labels in self.coords.items()}
        arrays = {name: _checked(name, tuple(a.dims), np.asarray(a.values), coords) for name, a in self.arrays.items()}
        if strangers := [claim for claim in self.claims if not isinstance(claim, Claim)]:
            raise TypeError(f"Result: claims must be Claim values, and {strangers[0]!r} is not; wrap it in Claim(...).")
        try:
            json.dumps(self.config)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Result: config must hold JSON-able values only ({error}); pass configs.config_as_dict(config)."
            ) from error
        containers = {"coords": coords, "arrays": arrays, "rows": tuple(self.rows), "claims": tuple(self.claims)}
        for name, value in containers.items():
            object.__setattr__(self, name, value)  # frozen for everyone else


def _checked(name: str, dims: tuple[str, ...], values: np.ndarray, coords: Mapping[str, tuple[Any, ...]]) -> Labelled:
    """`values` with its dims, once each axis is known, is named once and has as many entries as labels."""
    if len(dims) != values.ndim or len(set(dims)) != len(dims):
        raise ValueError(
            f'Result: array "{name}" has shape {values.shape} and dims {dims}; '
            f"give each of its {values.ndim} axes a name of its own."
        )
    for dim, size in zip(dims, values.shape, strict=True):
        if dim not in coords:
            raise ValueError(
                f'Result: array "{name}" has an axis "{dim}" without labels; add it to coords, where '
                f"{allowed_names(dim, coords)}"
            )
        if len(coords[dim]) != size:
            raise ValueError(
                f'Result: array "{name}" has {size} entries along "{dim}", and coords["{dim}"] has {len(coords[dim])} '
                "labels; make them equal."
            )
    return Labelled(dims, values)


def _named(result: Result, name: str) -> Labelled:
    if name not in result.arrays:
        raise KeyError(f'Result "{result.experiment}" has no array "{name}"; {allowed_names(name, result.arrays)}')
    return result.arrays[name]


def select(result: Result, name: str, **labels: Any) -> Labelled:
    """One array at chosen labels; the chosen axes go, the others stay.

    Args:
        result: where to look.
        name: name of the array.
        **labels: an axis and one of its labels, such as `format="bfloat16"`.

    Returns:
        The remaining axes and values (a view where numpy can give one).

    Raises:
        KeyError: for an unknown array, axis or label; the sentence lists what there is.

    Example:
        >>> result = Result("demo", {}, {"step": [0, 10]}, {"loss": Labelled(("step",), np.array([3.0, 2.0]))})
        >>> float(select(result, "loss", step=10).values)
        2.0
    """
    dims, values = _named(result, name)
    for dim, label in labels.items():
        if dim not in dims:
            raise KeyError(f'select: array "{name}" has no axis "{dim}"; {allowed_names(dim, dims)}')
        known = result.coords[dim]
        if label not in known:
            raise KeyError(f'select: axis "{dim}" of "{name}" has no label {label!r}; {allowed_names(label, known)}')
        values = values.take(known.index(label), axis=dims.index(dim))
        dims = tuple(d for d in dims if d != dim)
    return Labelled(dims, values)


def to_columns(result: Result, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays in long form: one row for each cell of the axes they span together.

    Args:
        result: where to look.
        names: the arrays to take; all of them by default. An array without some axis is repeated along it.

    Returns:
        A column of labels for each axis, in the order of `coords`, then a column for each array; all of one length.

    Raises:
        KeyError: for an unknown array.

    Example:
        >>> arrays = {"loss": Labelled(("step",), np.array([3.0, 2.0])), "n": Labelled((), np.array(7))}
        >>> to_columns(Result("demo", {}, {"step": [0, 10]}, arrays))
        {'step': array([ 0, 10]), 'loss': array([3., 2.]), 'n': array([7, 7])}
    """
    chosen = {name: _named(result, name) for name in (result.arrays if names is None else names)}
    dims = tuple(dim for dim in result.coords if any(dim in array.dims for array in chosen.values()))
    shape = tuple(len(result.coords[dim]) for dim in dims)

    def spread(values: np.ndarray, own: tuple[str, ...]) -> np.ndarray:
        ordered = values.transpose([own.index(dim) for dim in dims if dim in own])
        aligned = ordered[tuple(slice(None) if dim in own else np.newaxis for dim in dims)]
        return np.broadcast_to(aligned, shape).reshape(-1)

    labels = {dim: spread(np.asarray(result.coords[dim]), (dim,)) for dim in dims}
    return labels | {name: spread(array.values, array.dims) for name, array in chosen.items()}


def plain(value: Any) -> Any:
    """`value` as strict JSON can hold it: numpy becomes Python, NaN and infinities become None.

    Strict JSON has no NaN; null says "no number here" to every reader. (The store itself keeps them apart.)

    Example:
        >>> plain({"a": np.float32(0.5), "b": (float("nan"), np.arange(2))})
        {'a': 0.5, 'b': [None, [0, 1]]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def to_json_object(result: Result, run_folder: str | Path) -> dict[str, Any]:
    """What `precisionlab run --json` prints.

    Args:
        result: what was found.
        run_folder: where its run is kept.

    Returns:
        A JSON-able dict with the keys experiment, run, verdict, claims (`says` only where there is something to say) and rows,
        and those of `decided`, whose verdict takes the place of the sentences; see `plain` for NaN.

    Example:
        >>> to_json_object(Result("demo", {}, {}, {}, verdict="yes"), "runs/0123456789ab")
        {'experiment': 'demo', 'run': 'runs/0123456789ab', 'verdict': 'yes', 'claims': [], 'rows': []}
    """
    return {
        "experiment": result.experiment,
        "run": str(run_folder),
        "verdict": result.verdict,
        "claims": [plain({k: v for k, v in claim._asdict().items() if k != "says" or v}) for claim in result.claims],
        "rows": [plain(row) for row in result.rows],
        **plain(result.decided),
    }
