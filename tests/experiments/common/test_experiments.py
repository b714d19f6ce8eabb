"""What the experiments share: one base, placements, claims that say what they may, and runs that resume bit for bit."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from precisionlab.arithmetic.policy import PLACEMENTS
from precisionlab.experiments import BYTES, DIGITS, EXPERIMENTS, BytesConfig, DigitsConfig, FormatsConfig
from precisionlab.experiments.formats.comparison import FIGURES, draw_formats
from precisionlab.experiments.formats.verdicts import format_claims, verdict
from precisionlab.runs import store
from precisionlab.runs.configs import ConfigError, config_as_dict, parse_config
from precisionlab.runs.results import Labelled, Result

DIGIT = {"seeds": 2, "steps": 20, "every": 10, "chunk": 10, "hidden": [4], "batch_size": 8}
BYTE = {"seeds": 2, "steps": 20, "every": 10, "chunk": 10, "context": 8, "width": 8, "batch_size": 4, "limit": 200_000}
SMALL = {"digits": DIGIT, "bytes": BYTE}
FORMATS = ["bfloat16", "float8_e5m2"]


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def configured(name: str, **fields: Any) -> Any:
    return parse_config(EXPERIMENTS[name].config, {"formats": FORMATS, **SMALL[name], **fields}, name)


@pytest.mark.parametrize("name", SMALL)
def test_experiments_share_their_base(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    assert issubclass(experiment.config, FormatsConfig)
    assert experiment.figures is FIGURES
    shared = {field.name for field in dataclasses.fields(FormatsConfig)}
    assert shared < {field.name for field in dataclasses.fields(experiment.config)}
    quick = parse_config(experiment.config, dict(experiment.quick), "quick")
    assert quick.steps * quick.seeds < 0.5 * experiment.config().steps * experiment.config().seeds
    with pytest.raises(ConfigError, match=rf"{name}: expected a {experiment.config.__name__}; got \{{\}}"):
        experiment.run({})


@pytest.mark.slow
def test_bytes_run_and_say_what_digits_say() -> None:
    config = configured("bytes", modes=["nearest_even"])
    result = BYTES.run(config)
    assert result.experiment == "bytes"
    assert result.config == config_as_dict(config)
    assert len(result.provenance["corpus_sha256"]) == 64
    for row in result.rows:
        assert set(BYTES.columns) <= set(row)
        for name in ("train_loss", "test_loss", "test_bits_per_byte", "stagnated_fraction", "lost_mass", "zero_fraction"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        assert row["test_bits_per_byte"] == pytest.approx(row["test_loss"] / math.log(2), rel=1e-6)
        assert 0.05 < row["zero_fraction"] < 0.95  # of bytes that no batch has held yet
    assert [row["format"] for row in result.rows] == FORMATS
    assert result.claims[0] == result.claims[0]._replace(
        name="nearest_even loses more updates in float8_e5m2 than in bfloat16", held=True
    )
    assert all(isinstance(draw(result), Figure) for draw in BYTES.figures.values())


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


def placed(name: str, placement: str, mode: str = "nearest_even") -> Any:
    return configured(name, sites=list(PLACEMENTS[placement]), modes=[mode])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "placement"), [("digits", "gradients"), pytest.param("bytes", "all", marks=pytest.mark.thorough)]
)
def test_placements_round_what_they_name(name: str, placement: str) -> None:
    """A loss computed in a format lies on its grid: e5m2 has three significand bits."""
    loss = EXPERIMENTS[name].run(placed(name, placement)).arrays["loss"].values
    assert np.isfinite(loss).all()
    significand = np.frexp(loss[FORMATS.index("float8_e5m2")])[0] * 8
    assert (significand == np.round(significand)).all() == ("compute" in PLACEMENTS[placement])


@pytest.mark.thorough
def test_a_run_with_every_operation_rounded_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = placed("digits", "all", "stochastic")
    whole = DIGITS.run(config)
    opened = store.open_run(tmp_path, "digits", config_as_dict(config), store.provenance(device="cpu"))
    with pytest.raises(Interrupted):
        store.complete(opened, lambda journal: DIGITS.run(config, journal=Failing(journal, 1)))
    assert store.status(opened) == "partial"
    resumed = store.complete(opened, lambda journal: DIGITS.run(config, journal=journal))
    assert repr(resumed.rows) == repr(tuple(json.loads(json.dumps(whole.rows))))
    for array, values in whole.arrays.items():
        assert values.values.tobytes() == resumed.arrays[array].values.tobytes(), array


WRONG = [
    ({"sites": ["compute", "sums"]}, 'sites holds an unknown name "sums"; allowed are weights, compute, gradients'),
    ({"width": 30, "heads": 4}, "width=30, heads=4: width must be a multiple of heads"),
    ({"layers": 0}, "layers is 0; it must be at least 1"),
    ({"steps": 30, "every": 20}, "steps=30, .*multiples of every"),
    ({"hidden": [3]}, 'unknown key "hidden"; allowed are formats'),
]


@pytest.mark.parametrize(("fields", "sentence"), WRONG)
def test_wrong_configurations_of_bytes_are_sentences(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        parse_config(BytesConfig, fields, "bytes")
    assert "\n" not in str(caught.value)


def test_a_text_too_short_is_a_wrong_request() -> None:
    with pytest.raises(ConfigError, match=r"bytes: text: found .* at least 10 are needed; raise the limit"):
        BYTES.run(configured("bytes", limit=1000))


# Claims

SHAPE = (2, 2, 4)  # formats, modes, seeds


def claims(sites: tuple[str, ...] = ("weights",), **changed: Any) -> tuple[Any, ...]:
    """Of bfloat16 and e5m2, where nearest rounding loses a little and nearly all, and stochastic rounding repairs it."""
    noise = np.linspace(0.99, 1.01, 4)
    stagnated = np.array([[0.2, 0.2], [0.9, 0.8]])[..., None] * noise
    loss = np.array([[0.5, 0.5], [2.0, 0.6]])[..., None] * noise[::-1]
    samples = {"stagnated_fraction": stagnated, "train_loss": loss}
    for name, change in changed.items():
        change(samples[name])
    return format_claims(FORMATS, ("nearest_even", "stochastic"), sites, samples)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_claims_hold_where_they_should(placement: str) -> None:
    more, loss = claims(PLACEMENTS[placement])
    assert (more.name, more.held) == ("nearest_even loses more updates in float8_e5m2 than in bfloat16", True)
    assert (loss.name, loss.held) == ("float8_e5m2: training loss, stochastic / nearest_even", True)
    assert loss.measured == pytest.approx(0.3)


def test_nothing_is_claimed_of_weights_that_are_left_alone() -> None:
    for sites in (("gradients",), ("compute", "gradients"), ("updates", "moments")):
        assert claims(sites) == ()


def test_a_training_that_diverges_is_not_undecided() -> None:
    def fill(part: Any, value: float) -> Any:
        return lambda loss: loss.__setitem__(part, value)

    assert claims(train_loss=fill((1, 1), np.nan))[1][2:6] == (math.inf, *[pytest.approx(math.nan, nan_ok=True)] * 2, False)
    one = claims(train_loss=fill((1, 1, 0), np.nan))[1]
    assert (math.isnan(one.measured), one.held) == (True, None)
    both = claims(train_loss=fill(1, np.nan))[1]
    assert both.held is None
    worse = claims(train_loss=fill((1, 1), 3.0))[1]
    assert worse.held is False


def test_the_verdict_counts() -> None:
    share = np.array([[0.1, np.nan], [0.5, 0.2]])[..., None]
    said = verdict(FORMATS, ("nearest_even", "stochastic"), {"stagnated_fraction": share}, claims())
    assert said == "float8_e5m2 under nearest_even loses 50.00 % of its updates; of 2 claims 2 held, 0 failed, 0 undecided."
    said = verdict(FORMATS, ("nearest_even", "stochastic"), {"stagnated_fraction": share}, ())
    assert said.endswith("with these arms there is nothing to compare.")
    said = verdict(FORMATS, ("nearest_even", "stochastic"), {"stagnated_fraction": np.full((2, 2, 1), np.nan)}, ())
    assert said == "no arm was asked for a finite update to the end, so nothing can be said of what was lost."


# Figures


@pytest.mark.parametrize(("placement", "words"), [("weights", "weights"), ("all", "weights, every operation, gradients")])
def test_the_figure_says_what_was_rounded_and_which_arm_has_no_line(placement: str, words: str) -> None:
    axes = ("format", "mode", "seed", "step")
    loss = np.ones((2, 1, 2, 3))
    loss[1] = np.nan
    coords = {"format": FORMATS, "mode": ["stochastic"], "seed": [0, 1], "step": [1, 2, 3]}
    arrays = {"loss": Labelled(axes, loss), "stagnated_fraction": Labelled(axes, np.full(loss.shape, 0.5))}
    config = {"sites": list(reversed(PLACEMENTS[placement]))}
    figure = draw_formats(Result("bytes", config, coords, arrays))
    assert figure.get_suptitle() == f"Bytes: what each format does to training (rounded: {words})"
    left = figure.axes[0]
    assert left.get_xlabel() == "step\nno line where no loss is finite: float8_e5m2 under stochastic"
    assert ("as computed" in left.get_ylabel()) is (placement == "all")


def test_configurations_of_digits_keep_their_keys() -> None:
    """A run folder is named by its configuration: new keys would lose old runs."""
    assert store.config_hash("digits", config_as_dict(DigitsConfig())) == "3aa4049c9829"
    assert DIGITS.columns[:4] == ("format", "mode", "train_loss", "test_accuracy")
