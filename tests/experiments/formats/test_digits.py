"""The digits experiment says what it promised to say, and an interrupted run ends as if nothing had happened."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from precisionlab.experiments import EXPERIMENTS, MAIN, DigitsConfig, MemoryJournal
from precisionlab.experiments.formats.arms import BINS, FATES, SUMS
from precisionlab.experiments.formats.digits import DIGITS, run
from precisionlab.problems import digits
from precisionlab.runs import store
from precisionlab.runs.configs import ConfigError, config_as_dict, parse_config
from precisionlab.runs.results import Result, to_json_object

SMALL = DigitsConfig(formats=("float32", "float8_e4m3fn"), seeds=2, steps=40, every=10, chunk=20, hidden=(4,), batch_size=8)
ENTRIES = 64 * 4 + 4 + 4 * 10 + 10


class Recorder(MemoryJournal):
    """Remembers the states too."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Any] = []

    def append(self, columns: Any, state: Any) -> None:
        super().append(columns, state)
        self.states.append(state)


@pytest.fixture(scope="module", autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def whole(_optax_needs_standard_promotion: None) -> tuple[Result, Recorder, list[Any]]:
    journal, told = Recorder(), []
    return run(SMALL, journal=journal, progress=lambda *each: told.append(each)), journal, told


@pytest.mark.slow
def test_rows_and_claims_have_the_contracted_keys(whole: Any) -> None:
    result, _, told = whole
    assert result.experiment == "digits"
    assert result.config == config_as_dict(SMALL)
    pairs = [(row["format"], row["mode"]) for row in result.rows]
    assert sorted(pairs) == sorted((fmt, mode) for fmt in SMALL.formats for mode in SMALL.modes)
    contracted = {"train_loss", "test_accuracy", "stagnated_fraction", "lost_mass", "descent_quality"}
    for row in result.rows:
        assert contracted | {"stagnated_first", "worst_layer", "worst_layer_stagnated"} <= set(row)
        assert all(f"{name}_low" in row and f"{name}_high" in row for name in contracted)
        assert 0 <= row["test_accuracy"] <= 1
        assert row["stagnated_fraction_low"] <= row["stagnated_fraction"] <= row["stagnated_fraction_high"]
        assert row["worst_layer"] in {f"layer{n}/{part}" for n in (1, 2) for part in ("weight", "bias")}
    by = {pair: row for pair, row in zip(pairs, result.rows, strict=True)}
    narrow, wide = by["float8_e4m3fn", "nearest_even"], by["float32", "nearest_even"]
    assert narrow["stagnated_fraction"] > 0.5 > wide["stagnated_fraction"]
    assert narrow["lost_mass"] > 0.3 > 0.01 > wide["lost_mass"]
    assert wide["descent_quality"] == pytest.approx(1, abs=1e-3)
    assert set(DIGITS.columns) <= set(narrow)
    assert len(result.claims) > 0
    assert result.claims[0].held in (True, False, None)
    assert "float8_e4m3fn under nearest_even" in result.verdict
    assert [each[:2] for each in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert json.loads(json.dumps(to_json_object(result, "runs/x")))["experiment"] == "digits"


@pytest.mark.slow
def test_arrays_say_what_the_rows_say(whole: Any) -> None:
    result, journal, _ = whole
    assert result.coords["step"] == (10, 20, 30, 40)
    loss, fraction = result.arrays["loss"], result.arrays["stagnated_fraction"]
    assert loss.dims == fraction.dims == ("format", "mode", "seed", "step")
    assert loss.values.shape == (2, 2, 2, 4)
    assert np.isfinite(loss.values).all()
    # Arms are paired: the first loss is of the same batch on the same weights up to their rounding.
    fates, histogram = result.arrays["fates"].values, result.arrays["histogram"].values
    assert (fates.sum(-1) == 4 * 2 * ENTRIES).all()
    assert (histogram.sum(-1) == fates[..., :3].sum(-1)).all()
    columns = {name: np.concatenate([part[name] for part in journal.segments]) for name in journal.segments[0]}
    assert {"format", "mode", "seed", "step", "leaf", "loss", *FATES, *SUMS, *BINS} <= set(columns)
    assert len(columns["loss"]) == 2 * 2 * 2 * 4 * 4  # formats, modes, seeds, reads, leaves
    at = (columns["format"] == "float8_e4m3fn") & (columns["mode"] == "nearest_even") & (columns["step"] == 40)
    stagnated = columns["swamped"] + columns["underflowed"]
    cells = [at & (columns["seed"] == seed) for seed in (0, 1)]
    pooled = [stagnated[cell].sum() / (stagnated + columns["landed"])[cell].sum() for cell in cells]
    row = next(r for r in result.rows if (r["format"], r["mode"]) == ("float8_e4m3fn", "nearest_even"))
    assert math.isclose(row["stagnated_fraction"], np.mean(pooled), rel_tol=1e-9)
    # What was measured at the end is what the last state gives.
    params = journal.states[1]
    problem = digits(sizes=(64, 4, 10), batch_size=8)
    layers = {"layer1": {"bias": params[1], "weight": params[2]}, "layer2": {"bias": params[3], "weight": params[4]}}
    losses = [problem.evaluate(jax.tree.map(lambda leaf, s=s: leaf[1, s], layers))["train_loss"] for s in (0, 1)]
    assert row["train_loss"] == pytest.approx(np.mean(np.asarray(losses)), rel=1e-5)


class Interrupted(Exception):
    pass


class Failing:
    """A journal of the store that gives up after some appends."""

    def __init__(self, journal: store.Journal, appends: int) -> None:
        self.journal, self.left = journal, appends

    def resume(self) -> Any:
        return self.journal.resume()

    def query(self, sql: str) -> Any:
        return self.journal.query(sql)

    def append(self, columns: Any, state: Any) -> None:
        self.journal.append(columns, state)
        self.left -= 1
        if not self.left:
            raise Interrupted


@pytest.mark.slow
def test_an_interrupted_run_ends_as_if_nothing_had_happened(whole: Any, tmp_path: Path) -> None:
    result, _, _ = whole
    opened = store.open_run(tmp_path, "digits", config_as_dict(SMALL), store.provenance(device="cpu"))
    for appends, segments in ((2, 2), (1, 3)):  # between the modes, then within the second
        with pytest.raises(Interrupted):
            store.complete(opened, lambda journal, appends=appends: run(SMALL, journal=Failing(journal, appends)))
        assert store.status(opened) == "partial"
        assert store.resume_point(opened)[0] == segments
    resumed = store.complete(opened, lambda journal: run(SMALL, journal=journal))
    assert store.status(opened) == "done"
    assert repr(resumed.rows) == repr(tuple(json.loads(json.dumps(result.rows))))
    assert resumed.verdict == result.verdict
    assert repr(resumed.claims) == repr(result.claims)
    for name, array in result.arrays.items():
        assert array.values.tobytes() == resumed.arrays[name].values.tobytes(), name


WRONG = [
    ({"formats": ["bfloat61"]}, 'formats holds an unknown name "bfloat61".*did you mean "bfloat16"'),
    ({"formats": []}, "formats is empty; name at least one of float64, "),
    ({"formats": ["bfloat16", "bfloat16"]}, "formats names bfloat16, bfloat16; name each once"),
    ({"formats": ["float64"]}, "formats holds one that weights cannot take in a float32 carrier"),
    ({"modes": ["nearest"]}, 'modes holds an unknown name "nearest".*nearest_even'),
    ({"sites": ["compute", "sums"]}, 'sites holds an unknown name "sums"; allowed are weights, compute, gradients, updates'),
    ({"optimizer": "adamax"}, 'optimizer holds an unknown name "adamax".*adam'),
    ({"seeds": 0}, "seeds is 0; it must be at least 1"),
    ({"batch_size": -1}, "batch_size is -1; it must be at least 1"),
    ({"hidden": []}, "hidden is .*at least one layer"),
    ({"hidden": [0]}, "hidden is .*at least one layer of at least one unit"),
    ({"chunk": 30}, "chunk=30, every=20: steps and chunk must be multiples of every"),
    ({"steps": 2010}, "steps=2010, .*steps and chunk must be multiples of every"),
    ({"steps": 10}, "steps=10"),
    ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be a positive number"),
    ({"learning_rate": -1}, "learning_rate is -1.0; it must be a positive number"),
]


@pytest.mark.parametrize(("fields", "sentence"), WRONG)
def test_wrong_configurations_are_sentences(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        parse_config(DigitsConfig, fields, "digits")
    assert "\n" not in str(caught.value)


def test_the_registry_and_the_wrong_kind_of_config() -> None:
    assert EXPERIMENTS["digits"] is DIGITS
    assert MAIN in EXPERIMENTS
    with pytest.raises(ConfigError, match=r"digits: expected a DigitsConfig; got \{\}"):
        run({})  # type: ignore[arg-type]
    quick = parse_config(DigitsConfig, dict(DIGITS.quick), "quick")
    assert quick.steps < DigitsConfig().steps
