"""The slingshot: its arms do what they say, its rule can say each of its answers and none, and a run resumes bit for bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from precisionlab.experiments.slingshot.arms import ARMS, REGISTERS, Arm, finer, sling
from precisionlab.experiments.slingshot.power import power_above, power_spectrum
from precisionlab.experiments.slingshot.question import SLINGSHOT, SlingshotConfig, run
from precisionlab.experiments.slingshot.tasks import TASKS, noisy_digits, noisy_wave
from precisionlab.experiments.slingshot.verdicts import ROLES, at_equal_loss, judge
from precisionlab.numerics.formats import BFLOAT16, FLOAT32, fixed_point
from precisionlab.numerics.rounding import round_to
from precisionlab.runs import store
from precisionlab.runs.configs import ConfigError, config_as_dict, parse_config
from precisionlab.runs.results import Result, to_json_object

SMALL = SlingshotConfig(data=("waves",), registers=("fixed8", "bfloat16"), seeds=3, steps=(40,), more=(20,), chunk=10, width=4)
TWO_STAGES = dataclasses.replace(SMALL, registers=("native bfloat16", "bfloat16"))


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# The rule, on arrays with known answers.

NAMES = tuple(ARMS)
KINDS = ("floating point", "floating point", "fixed point")


def synthetic(seeds: int = 32, noise: float = 0.02, kinds: int = len(KINDS), **ratios: float) -> dict[str, np.ndarray]:
    """Arrays in which the factor 0.2 has the given ratios: of its test loss to `before`, `none`, `early`, ..., and of the power
    `high` and `low` when undone to those before; 1 for all others.
    """
    rng = np.random.default_rng(0)
    level = 2.0 ** rng.normal(0, 0.5, seeds)  # a seed's own, which pairing removes

    def near(value: float, *shape: int) -> np.ndarray:
        return level * value * 2.0 ** rng.normal(0, noise, (*shape, seeds))

    essay = 1.0
    after = near(essay, kinds, len(NAMES))
    for role in ("none", "fresh", "permuted", "decay"):
        after[:, NAMES.index(ROLES[role])] = near(essay / ratios.get(role, 1.0), kinds)
    after[:, NAMES.index("0.25, two bits more")] = near(essay / ratios.get("bits", 1.0), kinds)
    power = {
        name: np.stack([near(1.0, kinds, len(NAMES)), near(ratios.get(name, 1.0), kinds, len(NAMES))], axis=2)
        for name in ("high", "low")
    }
    return {
        "before": near(essay / ratios.get("before", 1.0), kinds),
        "early": near(essay / ratios.get("early", 1.0), kinds, len(NAMES)),
        "after": after,
        "memorized": np.full((kinds, seeds), ratios.get("memorized", 0.9)) + rng.normal(0, 0.01, (kinds, seeds)),
        "high": power["high"],
        "total": power["high"] + 10 * power["low"],
        "changed_normal": np.zeros((kinds, len(NAMES), seeds)),
    }


def effect_of(**ratios: float) -> str:
    return judge({"waves": synthetic(**ratios)}, KINDS, NAMES).effect["waves", "fixed point"]


BETTER = {"before": 0.5, "none": 0.5}


@pytest.mark.parametrize(
    ("ratios", "answer"),
    [
        ({"before": 1.0}, "absent"),
        ({"before": 1.4, "none": 1.4}, "absent"),
        ({"before": 0.5, "none": 1.0}, "explained by training on"),
        ({**BETTER, "early": 1.0}, "explained by early stopping"),
        ({**BETTER, "early": 1.2}, "explained by early stopping"),
        ({**BETTER, "early": 0.95}, "undecided: early stopping may explain it"),
        ({**BETTER, "early": 0.7}, "beyond early stopping, but fresh and permuted weights of the same norms do as well"),
        ({**BETTER, "early": 0.7, "permuted": 0.6}, "beyond early stopping, but fresh weights of the same norms do as well"),
        (
            {**BETTER, "early": 0.7, "fresh": 0.8, "permuted": 0.6},
            "beyond early stopping, and beyond fresh or permuted weights of the same norms",
        ),
        (
            {**BETTER, "early": 0.7, "fresh": 0.95, "permuted": 0.6},
            "beyond early stopping, undecided against fresh or permuted weights of the same norms",
        ),
        ({**BETTER, "early": 0.7, "memorized": 0.3}, "undecided: the noise is not shown to be memorized"),
    ],
)
def test_the_rule_on_the_effect(ratios: dict[str, float], answer: str) -> None:
    assert effect_of(**ratios) == answer


def test_few_noisy_seeds_decide_nothing() -> None:
    assert effect_of(**BETTER, early=0.7, seeds=3, noise=0.8) == "undecided"


@pytest.mark.parametrize("seed", range(5))
def test_labels_shuffled_between_arms_give_undecided(seed: int) -> None:
    """What early stopping explains, and what goes beyond it: with arms shuffled in every seed, neither can be told."""
    rng = np.random.default_rng(seed)
    for early in (1.0, 0.6):
        arrays = synthetic(**{**BETTER, "before": 0.4}, early=early, fresh=0.7, permuted=0.6, noise=0.3)
        before, names = np.repeat(arrays["before"][:, None], len(NAMES), 1), ("after", "early")
        pool = np.concatenate([before, *(arrays[name] for name in names)], axis=1)
        shuffled = rng.permuted(pool, axis=1)
        arrays |= {
            "before": shuffled[:, 0],
            "after": shuffled[:, len(NAMES) : 2 * len(NAMES)],
            "early": shuffled[:, -len(NAMES) :],
        }
        points = rng.permuted(np.concatenate([arrays["high"], 30 * arrays["high"]], axis=2), axis=2)[:, :, :2]
        arrays |= {"high": points, "total": points + arrays["total"][:, :, :1]}
        judged = judge({"waves": arrays}, KINDS, NAMES)
        assert set(judged.effect.values()) == {"undecided"}
        assert set(judged.mechanism.values()) == {"undecided"}


@pytest.mark.parametrize(
    ("ratios", "changed", "answer"),
    [
        ({"high": 1.0}, 0.5, "not supported: high frequencies do not fall"),
        ({"high": 1.3}, 0.5, "not supported: high frequencies do not fall"),
        (
            {"high": 1.0},
            0.0,
            "not supported: high frequencies do not fall, and by a factor 0.25 no weight changes unless it underflows",
        ),
        ({"high": 0.6, "low": 0.6}, 0.5, "not supported: all frequencies fall alike"),
        ({"high": 0.6, "bits": 0.7}, 0.5, "supported"),
        (
            {"high": 0.6},
            0.5,
            "supported by the spectrum, but no cause of the effect: where two bits more keep everything, it is as large",
        ),
        ({"high": 0.95}, 0.5, "undecided"),
    ],
)
def test_the_rule_on_the_mechanism(ratios: dict[str, float], changed: float, answer: str) -> None:
    arrays = synthetic(**ratios)
    arrays["changed_normal"] += changed
    assert judge({"waves": arrays}, KINDS, NAMES).mechanism["waves", "floating point"] == answer


def test_registers_that_never_overfit_are_left_out() -> None:
    arrays = synthetic(**BETTER, early=0.7, fresh=0.7, permuted=0.7)
    arrays["memorized"][0] = 0.2
    arrays["after"][0] *= 10  # and would have turned the answer
    judged = judge({"waves": arrays}, KINDS, NAMES)
    assert judged.effect["waves", "floating point"].startswith("beyond early stopping, and")


def test_claims_say_ratios_with_their_intervals() -> None:
    judged = judge({"waves": synthetic(**BETTER), "digits": synthetic(early=0.5)}, KINDS, NAMES)
    assert len(judged.claims) == 2 * 2 * 12
    by = {claim.name: claim for claim in judged.claims}
    claim = by["waves, fixed point: test loss after factor 0.2 / before it"]
    assert (claim.predicted, claim.held) == ("< 0.95", True)
    assert claim.measured == pytest.approx(0.5, rel=0.05)
    assert 0.45 < claim.low < claim.measured < claim.high < 0.55
    noise = by["waves, fixed point: share of the noise memorized"]
    assert noise.low < noise.measured < noise.high
    assert noise.measured == pytest.approx(0.9, abs=0.01)
    with pytest.raises(ValueError, match=r'judge: the arm "weight decay" is missing; the rule reads 0.2, 0.25, '):
        judge({"waves": synthetic()}, KINDS, [name for name in NAMES if name != "weight decay"])


def test_early_stopping_is_found_where_the_training_loss_first_falls_to_the_target() -> None:
    train, test = [8.0, 4.0, 1.0, 2.0, 0.5], [9.0, 5.0, 3.0, 4.0, 7.0]
    found, reached = at_equal_loss(train, test, [8.0, 4.0, 2.0, 1.0, 0.5])
    assert found.tolist() == pytest.approx([9.0, 5.0, 4.0, 3.0, 7.0])
    assert reached.all()
    half, _ = at_equal_loss(train, test, [2.0**0.5 * 0.5])
    assert half == pytest.approx([6.25])  # from 2.0 to 0.5 three quarters of the way, in logarithms
    outside, reached = at_equal_loss(train, test, [16.0, 0.1])
    assert outside.tolist() == [9.0, 7.0]
    assert not reached.any()


# The arms.

RNG = np.random.default_rng(5)
LEAVES = np.repeat([0, 1, 2], [40, 8, 12])
EVERY = np.ones(60, bool)


def weights(fmt: Any) -> np.ndarray:
    return np.asarray(round_to(jnp.asarray(RNG.normal(0, 0.7, (4, 60)).astype(np.float32)), fmt))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_in_floating_point_a_quarter_undone_is_what_was_there(name: str) -> None:
    before = weights(REGISTERS[name].fmt)
    slung = sling(ARMS["0.25"], before, REGISTERS[name].fmt, LEAVES, EVERY)
    assert np.array_equal(slung.weights, before / 4)
    assert np.array_equal(slung.undone, before.astype(np.float64))
    fifth = sling(ARMS["0.2 in float64, cast"], before, REGISTERS[name].fmt, LEAVES, EVERY)
    assert np.abs(fifth.undone / before - 1).max() <= 2.0 ** -REGISTERS[name].fmt.precision * (1 + 1e-6)


@pytest.mark.parametrize("name", ["fixed8", "fixed12"])
def test_in_fixed_point_it_is_two_bits_fewer_and_two_bits_more_undo_that(name: str) -> None:
    fmt = REGISTERS[name].fmt
    before = weights(fmt)
    slung = sling(ARMS["0.25"], before, fmt, LEAVES, EVERY)
    coarse = sling(ARMS["two bits fewer"], before, fmt, LEAVES, EVERY)
    assert np.array_equal(slung.undone, coarse.undone)
    assert np.array_equal(coarse.weights, np.round(before / (4 * spacing(fmt))) * 4 * spacing(fmt))
    assert np.mean(slung.undone != before) > 0.6
    wider = sling(ARMS["0.25, two bits more"], before, fmt, LEAVES, EVERY)
    assert np.array_equal(wider.undone, before)
    assert spacing(wider.fmt) == spacing(fmt) / 4
    # The register holds 0.2 as the nearest of its values.
    factor = np.round(0.2 / spacing(fmt)) * spacing(fmt)
    expected = np.round(before.astype(np.float64) * factor / spacing(fmt)) * spacing(fmt)
    assert np.array_equal(sling(ARMS["0.2"], before, fmt, LEAVES, EVERY).weights, expected)


def spacing(fmt: Any) -> float:
    return 2.0 ** (fmt.emin - fmt.precision + 1)


def test_a_native_multiplication_is_the_register_s_own() -> None:
    before = weights(BFLOAT16)
    native = jnp.asarray(before).astype(jnp.bfloat16) * jnp.bfloat16(0.2)
    assert np.array_equal(np.asarray(native, np.float32), sling(ARMS["0.2"], before, BFLOAT16, LEAVES, EVERY).weights)


def test_permuted_and_fresh_weights_keep_the_norm_of_every_leaf() -> None:
    before = weights(FLOAT32)
    shrunk = sling(ARMS["0.2"], before, FLOAT32, LEAVES, EVERY).weights
    permuted = sling(ARMS["0.2, permuted"], before, FLOAT32, LEAVES, EVERY).weights
    fresh = sling(ARMS["0.2, fresh"], before, FLOAT32, LEAVES, EVERY).weights
    for leaf in range(3):
        place = leaf == LEAVES
        assert np.array_equal(np.sort(permuted[:, place]), np.sort(shrunk[:, place]))
        assert np.linalg.norm(fresh[:, place], axis=1) == pytest.approx(np.linalg.norm(shrunk[:, place], axis=1), rel=1e-5)
    assert not np.array_equal(permuted, shrunk)
    assert np.abs(np.corrcoef(fresh.ravel(), shrunk.ravel())[0, 1]) < 0.25
    assert not np.array_equal(fresh[0], fresh[1])


def test_parts_leave_the_rest_alone() -> None:
    before, chosen = weights(BFLOAT16), LEAVES == 1
    slung = sling(Arm("scale", 0.5), before, BFLOAT16, LEAVES, chosen)
    assert np.array_equal(slung.weights[:, ~chosen], before[:, ~chosen])
    assert np.array_equal(slung.weights[:, chosen], before[:, chosen] / 2)
    for arm in (ARMS["none"], ARMS["weight decay"]):
        assert np.array_equal(sling(arm, before, BFLOAT16, LEAVES, EVERY).weights, before)


def test_formats_with_more_and_fewer_bits() -> None:
    assert finer(fixed_point(2, 5), 2)._replace(largest=0, overflow=0) == fixed_point(2, 7)._replace(largest=0, overflow=0)
    assert finer(BFLOAT16, -2).largest == (2 - 2.0**-5) * 2.0**127
    assert finer(BFLOAT16, 2).precision == 10
    assert finer(FLOAT32, 2) == FLOAT32


def test_a_mechanism_that_is_there_is_seen() -> None:
    """A function whose high frequencies hang on weights below two bits of the register: they, and they alone, must fall."""
    fmt, x = REGISTERS["fixed8"].fmt, np.arange(256) / 256
    waves = np.stack([np.sin(2 * np.pi * k * x) for k in (2, 40)])
    rows = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        coefficients = np.array([[1.0 + 0.5 * rng.random(), spacing(fmt)]], np.float32)
        before = np.asarray(round_to(jnp.asarray(coefficients), fmt))
        undone = sling(ARMS["0.25"], before, fmt, np.zeros(2, int), np.ones(2, bool)).undone
        spectra = power_spectrum(np.stack([before[0] @ waves, undone[0] @ waves]))
        rows.append((power_above(spectra, 20), power_above(spectra, 0)))
    high, total = (np.stack([row[part] for row in rows], -1) for part in (0, 1))
    arrays = synthetic(seeds=8, bits=0.5)
    shape = (len(KINDS), len(NAMES), 2, 8)
    arrays |= {"high": np.broadcast_to(high, shape), "total": np.broadcast_to(total, shape)}
    assert judge({"waves": arrays}, KINDS, NAMES).mechanism["waves", "fixed point"] == "supported"


# The data.


@pytest.mark.slow
def test_the_wave_knows_its_noise() -> None:
    task = noisy_wave(8)
    data, params = jax.jit(task.data)(jax.random.key(1)), jax.jit(task.init)(jax.random.key(0))
    told = jax.jit(task.evaluate)(params, data)
    noise = np.mean((np.asarray(data.targets) - np.asarray(data.clean)) ** 2)
    assert float(told["memorized"]) == pytest.approx(1 - float(told["train_loss"]) / noise, rel=1e-4)
    assert task.lines(data).shape == (1, 256, 1)


@pytest.mark.slow
def test_digits_have_wrong_labels_of_their_own() -> None:
    task = noisy_digits(8)
    data = jax.jit(jax.vmap(task.data))(jax.random.split(jax.random.key(0), 40))
    assert np.mean(np.asarray(data.wrong)) == pytest.approx(0.3, abs=0.03)
    images = np.asarray(data.images)
    assert images.shape == (40, 128, 64)
    assert not np.array_equal(images[0], images[1])
    from precisionlab.problems import load_digits

    found = load_digits()
    known = {row.tobytes(): int(label) for row, label in zip(found.train_images, found.train_labels, strict=True)}
    true = np.array([[known[row.tobytes()] for row in rows] for rows in images])
    assert np.array_equal(np.asarray(data.labels) != true, np.asarray(data.wrong))
    one = jax.tree.map(lambda leaf: leaf[0], data)
    lines = np.asarray(task.lines(one))
    assert lines.shape == (8, 64, 64)
    assert np.array_equal(lines[:, 0], images[0, :8])
    assert lines[:, 32] == pytest.approx((images[0, :8] + images[0, 8:16]) / 2)
    rows, labels = jax.jit(task.batch)(jax.random.key(3), one)
    pairs = {(row.tobytes(), int(label)) for row, label in zip(images[0], np.asarray(one.labels), strict=True)}
    assert {(np.asarray(row).tobytes(), int(label)) for row, label in zip(rows, labels, strict=True)} <= pairs


# The whole.


class Interrupted(Exception):
    pass


class Failing:
    """A journal of the store that gives up after its first stage."""

    def __init__(self, journal: store.Journal) -> None:
        self.journal = journal

    def resume(self) -> Any:
        return self.journal.resume()

    def query(self, sql: str) -> Any:
        return self.journal.query(sql)

    def append(self, columns: Any, state: Any) -> None:
        self.journal.append(columns, state)
        raise Interrupted


@pytest.fixture(scope="module")
def small() -> tuple[Result, list[Any]]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        told: list[Any] = []
        return run(SMALL, progress=lambda *each: told.append(each)), told


@pytest.mark.slow
def test_a_run_says_what_it_promised(small: tuple[Result, list[Any]]) -> None:
    result, told = small
    assert result.coords["register"] == SMALL.registers
    assert (result.coords["waves_step"], result.coords["waves_more"]) == ((0, 10, 20, 30, 40), (0, 10, 20))
    path, after = result.arrays["waves_path_test"], result.arrays["waves_test"]
    assert path.dims == ("register", "seed", "waves_step")
    assert after.dims == ("register", "arm", "seed", "waves_more")
    none, decay, quarter = (NAMES.index(name) for name in ("none", "weight decay", "0.25"))
    # Without a factor, the slingshot begins where training ended.
    assert np.array_equal(after.values[:, none, :, 0], path.values[..., -1])
    assert np.array_equal(after.values[:, decay, :, 0], path.values[..., -1])
    assert (after.values[:, NAMES.index("0.2"), :, 0] != path.values[..., -1]).all()
    fixed, floating = range(2)
    high = result.arrays["waves_high"].values  # register, arm, point, seed
    assert np.array_equal(high[floating, quarter, 0], high[floating, quarter, 1])
    assert (high[fixed, quarter, 0] != high[fixed, quarter, 1]).all()
    assert (high <= result.arrays["waves_total"].values).all()
    changed = result.arrays["waves_changed"].values
    assert not changed[floating, quarter].any()
    assert not changed[:, none].any()
    assert (changed[fixed, quarter] > 0.5).all()
    assert len({float(loss) for loss in path.values[0, :, 0]}) == SMALL.seeds  # data of their own
    # Early stopping is somewhere on the path of the run that was trained on without a slingshot.
    early = result.arrays["waves_early"].values
    way = np.concatenate([path.values, after.values[:, none, :, 1:]], axis=-1)[:, None]
    assert ((early >= way.min(-1) * (1 - 1e-12)) & (early <= way.max(-1) * (1 + 1e-12))).all()
    assert [(row["registers"], row["arm"]) for row in result.rows] == [
        (kind, name) for kind in ("fixed point", "floating point") for name in NAMES
    ]
    assert set(SLINGSHOT.columns) <= set(result.rows[0])
    assert len(result.claims) == 2 * 12
    assert "waves, floating point: undecided" in result.verdict
    assert "3 seeds can leave undecided what 32 decide" in result.verdict
    assert json.loads(json.dumps(to_json_object(result, "runs/x")))["experiment"] == "slingshot"
    assert told[0] == (0, 1, "waves in fixed8, bfloat16")
    assert told[1:-1] == [(chunk, 6, "waves in fixed8, bfloat16") for chunk in range(1, 7)]


@pytest.mark.slow
def test_figures_are_drawn(small: tuple[Result, list[Any]], tmp_path: Path) -> None:
    for number, draw in enumerate(SLINGSHOT.figures.values()):
        figure = draw(small[0])
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{number}.png", dpi=40)


@pytest.mark.thorough
def test_an_interrupted_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    opened = store.open_run(tmp_path, "slingshot", config_as_dict(TWO_STAGES), store.provenance(device="cpu"))
    with pytest.raises(Interrupted):
        store.complete(opened, lambda journal: run(TWO_STAGES, journal=Failing(journal)))
    assert store.resume_point(opened)[0] == 1
    resumed = store.complete(opened, lambda journal: run(TWO_STAGES, journal=journal))
    whole = run(TWO_STAGES)
    assert whole.verdict == resumed.verdict
    assert whole.arrays.keys() == resumed.arrays.keys()
    for name, array in whole.arrays.items():
        assert array.values.tobytes() == resumed.arrays[name].values.tobytes(), name
    # Simulated and native registers begin from the same weights and data; the native one is bfloat16 throughout.
    path = whole.arrays["waves_path_train"].values
    assert path[0, :, 0] == pytest.approx(path[1, :, 0], rel=1e-6)
    assert not whole.arrays["waves_changed"].values[0, NAMES.index("0.25")].any()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"data": ["wave"]}, 'data holds an unknown name "wave".*did you mean "waves"'),
        ({"data": []}, "data is empty; name at least one of waves, digits"),
        ({"registers": ["fixed9"]}, 'registers holds an unknown name "fixed9".*fixed8'),
        ({"registers": ["fixed8", "fixed8"]}, "registers names fixed8, fixed8; name each once"),
        ({"mode": "nearest"}, 'mode holds an unknown name "nearest".*nearest_even'),
        ({"steps": [400]}, r"steps is \(400,\); give one number for each of waves, digits"),
        ({"more": [40, 41]}, r"more is \(40, 41\); allowed are positive multiples of chunk=40"),
        ({"steps": [0, 40]}, r"steps is \(0, 40\); allowed are positive multiples"),
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be a positive number"),
    ],
)
def test_wrong_configurations_are_sentences(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_config(SlingshotConfig, fields, "slingshot")


def test_the_sizes_and_the_wrong_kind_of_config() -> None:
    with pytest.raises(ConfigError, match=r"slingshot: expected a SlingshotConfig; got \{\}"):
        run({})  # type: ignore[arg-type]
    quick, full = (parse_config(SlingshotConfig, dict(fields), "size") for fields in (SLINGSHOT.quick, SLINGSHOT.full))
    assert quick.seeds < SlingshotConfig().seeds == 32 < full.seeds
    assert set(TASKS) == set(SlingshotConfig().data)
