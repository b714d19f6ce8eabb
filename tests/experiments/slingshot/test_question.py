"""The slingshot: its arms do what they say, and a run tells what it promised and resumes bit for bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from precisionlab.experiments.slingshot.arms import ARMS, REGISTERS, Arm, finer, kind_of, sling
from precisionlab.experiments.slingshot.question import SLINGSHOT, SlingshotConfig, run
from precisionlab.experiments.slingshot.sizes import SIZED_ARMS
from precisionlab.experiments.slingshot.spectra import POINTS
from precisionlab.experiments.slingshot.tasks import TASKS, noisy_digits, noisy_wave
from precisionlab.numerics.formats import BFLOAT16, FLOAT32, fixed_point
from precisionlab.numerics.rounding import round_to
from precisionlab.runs import store
from precisionlab.runs.configs import ConfigError, config_as_dict, parse_config
from precisionlab.runs.results import Result, to_json_object

NAMES = tuple(ARMS)
SMALL = SlingshotConfig(
    data=("waves",),
    registers=("fixed8", "bfloat16"),
    seeds=3,
    steps=(40,),
    longest=(0.5,),
    sizes=(16, 8),
    size_seeds=2,
    chunk=10,
    width=4,
)
TWO_STAGES = dataclasses.replace(SMALL, registers=("native bfloat16", "bfloat16"), sizes=())


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


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


def test_what_is_scaled_without_rounding_is_scaled_by_the_factor_that_the_register_holds() -> None:
    before, fmt = weights(fixed_point(2, 5)), fixed_point(2, 5)
    held = np.round(0.2 / spacing(fmt)) * spacing(fmt)
    slung = sling(ARMS["0.2"], before, fmt, LEAVES, LEAVES == 1)
    expected = np.where(LEAVES == 1, before.astype(np.float64) * held, before)
    assert np.array_equal(slung.exact, expected)
    assert np.abs(slung.weights - slung.exact).max() == pytest.approx(spacing(fmt) / 2, rel=0.1)
    for name in ("none", "weight decay", "two bits fewer"):
        assert np.array_equal(sling(ARMS[name], before, fmt, LEAVES, EVERY).exact, before)


def test_kinds_of_registers() -> None:
    assert {kind_of(name) for name in REGISTERS} == {"floating point", "floating point of 8 bits", "fixed point"}
    assert kind_of("native bfloat16") == "floating point"


def test_a_quarter_of_eight_bits_of_floating_point_underflows() -> None:
    before = np.array([[1.0, 0.25, 2.0**-6, 3 * 2.0**-9]], np.float32)
    slung = sling(ARMS["0.25"], before, REGISTERS["float8_e4m3fn"].fmt, np.zeros(4, int), np.ones(4, bool))
    assert slung.undone.tolist() == [[1.0, 0.25, 2.0**-6, 2.0**-7]]  # three quarters of the last bit are one of it


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
    assert result.coords["waves_step"] == (0, 10, 20, 30, 40)
    path, after = result.arrays["waves_path_test"], result.arrays["waves_test"]
    assert path.dims == ("register", "seed", "waves_step")
    assert after.dims == ("register", "arm", "seed", "waves_more")
    none, decay, quarter = (NAMES.index(name) for name in ("none", "weight decay", "0.25"))
    # Without a factor, the slingshot begins where training ended; each arm stops at its reach.
    assert np.array_equal(after.values[:, none, :, 0], path.values[..., -1])
    assert np.array_equal(after.values[:, decay, :, 0], path.values[..., -1])
    assert (after.values[:, NAMES.index("0.2"), :, 0] != path.values[..., -1]).all()
    late = np.asarray(result.coords["waves_more"]) > 0.1
    for place, arm in enumerate(ARMS.values()):
        assert np.isnan(after.values[:, place][..., late]).all() == (arm.reach < 0.5)
        assert np.isfinite(after.values[:, place][..., ~late]).all()
    norm, before = result.arrays["waves_norm"].values, result.arrays["waves_norm_before"].values
    assert norm[:, none, :, 0] == pytest.approx(before)
    assert norm[:, NAMES.index("0.2"), :, 0] == pytest.approx(0.2 * before, rel=0.1)
    # Kept moments go on as if nothing had been stopped, new ones do not; from the same weights.
    kept = NAMES.index("none, moments kept")
    assert np.array_equal(after.values[:, kept, :, 0], after.values[:, none, :, 0])
    assert (after.values[:, kept, :, 2] != after.values[:, none, :, 2]).any()
    fixed, floating = range(2)
    high = result.arrays["waves_high"].values  # register, arm, point, seed
    at = {point: POINTS.index(point) for point in POINTS}
    assert np.array_equal(high[floating, quarter, at["before"]], high[floating, quarter, at["undone"]])
    assert np.array_equal(high[floating, quarter, at["exact"]], high[floating, quarter, at["shrunk"]])
    assert (high[fixed, quarter, at["before"]] != high[fixed, quarter, at["undone"]]).all()
    assert (high[fixed, quarter, at["exact"]] != high[fixed, quarter, at["shrunk"]]).all()
    assert (high[:, quarter, at["shrunk"]] < high[:, quarter, at["before"]]).all()
    assert (high <= result.arrays["waves_total"].values).all()
    changed = result.arrays["waves_changed"].values
    assert not changed[floating, quarter].any()
    assert not changed[:, none].any()
    assert (changed[fixed, quarter] > 0.5).all()
    assert len({float(loss) for loss in path.values[0, :, 0]}) == SMALL.seeds  # data of their own
    # Early stopping is somewhere on the path of the run that was trained on without a slingshot.
    early = result.arrays["waves_early"].values
    way = np.concatenate([path.values, after.values[:, none][..., 1:][..., ~late[1:]]], axis=-1)[:, None]
    assert ((early >= way.min(-1) * (1 - 1e-12)) & (early <= way.max(-1) * (1 + 1e-12))).all()
    rows = [row for row in result.rows if row["against"] == "before" and row["points"] == 20]
    assert [(row["registers"], row["arm"]) for row in rows] == [
        (kind, name) for kind in ("fixed point", "floating point") for name in NAMES
    ]
    essay = next(row for row in rows if (row["registers"], row["arm"]) == ("floating point", "0.2"))
    assert set(SLINGSHOT.columns) <= set(essay)
    assert essay["norm_back"] == "0 of 3"
    assert np.isnan(essay["at_norm"])
    ratio = after.values[floating, NAMES.index("0.2"), :, result.coords["waves_more"].index(0.5)] / path.values[floating, :, -1]
    assert essay["at_50"] == pytest.approx(np.median(ratio))
    # Sizes, in the order in which they were asked for, and the questions of them.
    assert result.coords["size"] == (16, 8)
    assert result.arrays["waves_sizes_test"].values.shape[:3] == (2, len(SIZED_ARMS), 2)
    assert {row["points"] for row in result.rows} == {20, 8, 16}
    asked = "waves, 8 to 16 points: test loss slung / before with 16 points"
    assert any(claim.name.startswith(asked) for claim in result.claims)
    assert "waves, all registers: the networks are not shown to memorize the noise" in result.verdict
    assert "the norm of before" not in result.verdict
    assert "3 seeds can leave undecided what 32 decide" in result.verdict
    assert json.loads(json.dumps(to_json_object(result, "runs/x")))["experiment"] == "slingshot"
    assert told[0] == (0, 1, "waves in fixed8, bfloat16")
    assert told[1][0] == 1
    last = [each for each in told if each[2] == told[0][2]][-2]
    assert last[0] == last[1]


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
        ({"data": []}, "data is empty; name at least one of waves, relu_waves, digits"),
        ({"registers": ["fixed9"]}, 'registers holds an unknown name "fixed9".*fixed8'),
        ({"registers": ["fixed8", "fixed8"]}, "registers names fixed8, fixed8; name each once"),
        ({"mode": "nearest"}, 'mode holds an unknown name "nearest".*nearest_even'),
        ({"steps": [400]}, r"steps is \(400,\); give one number for each of waves, relu_waves, digits"),
        ({"longest": [0.5]}, r"longest is \(0\.5,\); give one number for each of waves, relu_waves, digits"),
        ({"longest": [0.5, 0.05, 1]}, r"longest is \(0\.5, 0\.05, 1\.0\); allowed are shares of the steps of at least 0\.1"),
        ({"steps": [0, 40, 40]}, r"steps is \(0, 40, 40\); allowed are positive multiples of chunk=40"),
        ({"sizes": [16, 1]}, r"sizes is \(16, 1\); allowed are different whole numbers of points, at least 2"),
        ({"sized": ["digit"]}, 'sized holds an unknown name "digit".*did you mean "digits"'),
        ({"size_seeds": 0}, "size_seeds is 0; it must be at least 1"),
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
