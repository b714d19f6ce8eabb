"""`forecast`'s interval against training, and the pictures that `--plot` draws."""

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.axes import Axes

from precisionlab.checkpoints import forecast
from precisionlab.checkpoints.forecasting import SPREAD
from precisionlab.numerics.formats import BFLOAT16, FLOAT8_E4M3FN
from precisionlab.optimizers import stagnation, track
from precisionlab.problems import digits
from precisionlab.runs import drawing
from precisionlab.stagnation.fates import total
from precisionlab.stagnation.landing import expected_lost_fraction
from tests.checkpoints.test_reading_and_comparing import refused, run, save, strict, weights

FORMATS = (BFLOAT16, FLOAT8_E4M3FN)
PNG, SVG, PDF = b"\x89PNG", b"<?xml", b"%PDF"


@lru_cache
def trainer(name: str) -> Any:
    """From a learning rate to the weights before each step of digits in float32, and what each format would lose in it."""
    problem = digits()

    @jax.jit
    def train(lr: Any) -> Any:
        tracked = track(getattr(optax, name)(lr), formats=FORMATS, detail=False)

        def step(carry: Any, key: Any) -> Any:
            params, state = carry
            updates, state = tracked.update(jax.grad(problem.loss)(params, problem.batch(key)), state, params)
            lost = {fmt: total(seen).stagnated_fraction for fmt, seen in stagnation(state).what_if.items()}
            return (optax.apply_updates(params, updates), state), (params, lost)

        params = problem.init(jax.random.key(0))
        return jax.lax.scan(step, (params, tracked.init(params)), jax.random.split(jax.random.key(1), 103))[1]

    return train


@pytest.mark.sampled(0, slow=6)
@pytest.mark.parametrize("lr", [1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("name", ["adamw", "adam", "lion"])
def test_training_loses_what_the_interval_says(tmp_path: Path, name: str, lr: float) -> None:
    """Weight decay as Optax has it by default; a forecast from one step's weights is held against that and the next two."""
    with jax.numpy_dtype_promotion("standard"):  # Optax needs it
        weights_at, lost = trainer(name)(jnp.float32(lr))
    for step in (2, 30, 100):
        held = {f"{layer}/{part}": w[step] for layer, parts in weights_at.items() for part, w in parts.items()}
        np.savez(tmp_path / "w.npz", **held)
        for row in forecast(tmp_path / "w.npz", lr, formats=FORMATS)["totals"]:
            assert row["low"] <= row["lost_fraction"] <= row["high"]
            for share in np.asarray(lost[row["format"]])[step : step + 3]:
                assert row["low"] <= share <= row["high"], (step, row)


def test_the_interval_says_something(tmp_path: Path) -> None:
    """Where updates are large nothing is lost, where they are tiny everything, and both ends say so."""
    path = save(tmp_path / "m.safetensors", w=weights(np.float32)[44:])
    (row,) = forecast(path, 1e4, formats=[BFLOAT16])["rows"]
    assert (row["low"], row["high"]) == (0, 0)
    (row,) = forecast(path, 1e-9, formats=[FLOAT8_E4M3FN])["rows"]
    assert (row["low"], row["high"]) == (1, 1)
    (row,) = forecast(path, 1e-4, formats=[BFLOAT16])["rows"]
    assert 0 < row["low"] < row["lost_fraction"] < row["high"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 3e-6])
def test_bounds_and_curves_are_the_same_question_at_other_sizes(tmp_path: Path, size: float | None) -> None:
    array, lr = weights(np.float32), 1e-4
    path = save(tmp_path / "m.safetensors", w=array, none=array[:0])
    others = [1e-9, 1e-5, 1e-4, 0.3, 1e38]
    found = forecast(path, lr, update_size=size, formats=FORMATS, other_lrs=others)
    for row, fmt in zip(found["rows"][:2], FORMATS, strict=True):
        for bound, factor in zip(("low", "high"), SPREAD, strict=True):
            assert row[bound] == pytest.approx(float(expected_lost_fraction(array, factor * (size or lr), fmt)), abs=1e-7)
    assert all(math.isnan(row[bound]) for row in found["rows"][2:] for bound in ("low", "high"))
    named = [(curve["tensor"], curve["format"]) for curve in found["curves"]]
    assert named == [(row["tensor"], row["format"]) for row in [*found["rows"], *found["totals"]]]
    assert "curves" not in forecast(path, lr)
    for i, other in enumerate(others):
        again = forecast(path, other, update_size=size and size * other / lr, formats=FORMATS)
        expected = [row["lost_fraction"] for row in [*again["rows"], *again["totals"]]]
        np.testing.assert_array_equal([curve["lost_fractions"][i] for curve in found["curves"]], expected)
    assert "low and high are for updates of 2 times and 1/64 of that" in found["assumption"]


def test_the_table_and_json_show_the_interval(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", w=weights(np.float32))
    (row, *_) = strict(run("forecast", path, "--lr", "1e-4", "--json"))["rows"]
    assert row["low"] < row["lost_fraction"] < row["high"]
    assert f"{row['lost_fraction']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in run("forecast", path, "--lr", "1e-4").stdout


# Pictures


def drawn_by(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes that `--plot` saves from here on."""
    seen: list[Axes] = []
    original = drawing.save_plot
    monkeypatch.setattr(drawing, "save_plot", lambda ax, path: (seen.append(ax), original(ax, path)))
    return seen


def legend(ax: Axes) -> list[str]:
    shown = ax.get_legend()
    assert shown is not None
    return [text.get_text() for text in shown.get_texts()]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("suffix", "start"), [("png", PNG), ("SVG", SVG), ("pdf", PDF)])
def test_plots_are_saved_beside_the_same_answer(tmp_path: Path, suffix: str, start: bytes) -> None:
    names = {"w": weights(np.float32), "a$\\frac$b": weights(np.float32, seed=1), "層": weights(np.float32, 100)}
    a = save(tmp_path / "a.safetensors", **names)
    b = save(tmp_path / "b.safetensors", **{name: array * np.float32(1.001) for name, array in names.items()})
    for verb in (["forecast", a, "--lr", "1e-4"], ["compare", a, b]):
        path = tmp_path / f"{verb[0]}.{suffix}"
        said = run(*verb, "--plot", path)
        assert said.exit_code == 0, said.exception
        assert said.stdout == run(*verb).stdout
        assert said.stderr == f"plot saved in {path}\n"
        assert path.read_bytes().startswith(start)
        assert strict(run(*verb, "--plot", path, "--json")) == strict(run(*verb, "--json"))
    assert sorted(child.suffix for child in tmp_path.iterdir()) == sorted([f".{suffix}", f".{suffix}", *[".safetensors"] * 2])


@pytest.mark.slow
def test_a_forecast_is_drawn_as_it_was_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = drawn_by(monkeypatch)
    tensors = {f"layers.{i}.norm": np.full(8, 1 + 0.1 * i, np.float32) for i in range(5)}
    tensors |= {"head": weights(np.float32), "body": weights(np.float32) / 8, "none": np.zeros(0, np.float32)}
    path = save(tmp_path / "m.safetensors", **tensors)
    run("forecast", path, "--lr", "1e-4", "--plot", tmp_path / "p.png")
    (ax,) = seen
    labels = legend(ax)
    assert [label for label in labels if not label.startswith("  ")] == [
        "bfloat16, all tensors",
        "float8_e4m3fn, all tensors",
        "learning rate asked: 0.0001",
        "low to high there",
    ]
    assert sum("norm" in label for label in labels) == 2  # one of five for each format
    assert not any("none" in label for label in labels)
    (total,) = (row for row in forecast(path, 1e-4, formats=[BFLOAT16])["totals"])
    line = ax.get_lines()[0]
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert x[120] == pytest.approx(1e-4)
    assert y[120] == pytest.approx(100 * total["lost_fraction"])
    (bar,) = ax.collections[0].get_segments()
    assert bar[:, 1].tolist() == [100 * total["low"], 100 * total["high"]]
    assert (np.diff(y) <= 0).all()
    run(
        "forecast",
        path,
        "--lr",
        "1e-4",
        "--formats",
        "float16,bfloat16,float8_e5m2,float8_e4m3fn,float4_e2m1fn",
        "--plot",
        tmp_path / "p.png",
    )
    assert [label.split(",")[0] for label in legend(seen[1])[:5]] == [
        "float16",
        "bfloat16",
        "float8_e5m2",
        "float8_e4m3fn",
        "float4_e2m1fn",
    ]


def test_three_hundred_tensors_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = drawn_by(monkeypatch)
    old = {f"layers.{i}.{name}": weights(np.float32, 60, i) for i in range(75) for name in ("q", "k", "v", "norm")}
    new = {name: array if name.endswith("norm") else array * np.float32(1.01) for name, array in old.items()}
    a, b = save(tmp_path / "a.safetensors", **old), save(tmp_path / "b.safetensors", **new)
    run("compare", a, b, "--plot", tmp_path / "p.png")
    assert next(tick.get_text() for tick in seen[0].get_yticklabels()) == "layers.*.norm (75)"
    assert len(seen[0].get_yticks()) == 4
    assert seen[0].patches[0].get_width() == 100
    assert len(seen[0].get_lines()[0].get_xdata()) == 300
    assert "unchanged, each tensor of several" in legend(seen[0])
    odd = [{f"{chr(97 + i // 26)}{chr(97 + i % 26)}": array for i, array in enumerate(held.values())} for held in (old, new)]
    a, b = (save(tmp_path / f"{side}.safetensors", **held) for side, held in zip("ab", odd, strict=True))
    run("compare", a, b, "--plot", tmp_path / "p.png")
    labels = [tick.get_text() for tick in seen[1].get_yticklabels()]
    assert len(labels) == 40
    assert labels[-1] == "others (261)"
    whole = sum(patch.get_width() for patch in seen[1].patches)
    assert whole == pytest.approx(100 * 40)


def test_few_tensors_have_a_bar_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = drawn_by(monkeypatch)
    tensors = {f"layers.{i}": weights(np.float32, seed=i) for i in range(3)} | {"none": np.zeros(0, np.float32)}
    a = save(tmp_path / "a.safetensors", **tensors)
    run("compare", a, a, "--plot", tmp_path / "p.png")
    assert [tick.get_text() for tick in seen[0].get_yticklabels()] == [f"layers.{i}" for i in range(3)]
    assert "unchanged, each tensor of several" not in legend(seen[0])
    nothing = save(tmp_path / "none.safetensors", none=np.zeros(0, np.float32))
    for verb in (["compare", nothing, nothing], ["forecast", nothing, "--lr", "1"]):
        assert run(*verb, "--plot", tmp_path / "none.png").exit_code == 0


@pytest.mark.parametrize("verb", [["forecast", "absent", "--lr", "1"], ["compare", "absent", "absent"]])
def test_a_plot_that_cannot_be_saved_is_refused_before_anything_is_read(
    tmp_path: Path, verb: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, words in {
        "p.gif": "ends in none of .png, .svg, .pdf; name a file that does.",
        "p": "ends in none of .png, .svg, .pdf",
        "absent/p.png": f"cannot be written (there is no folder {tmp_path / 'absent'}); name a file in a folder that exists.",
        "folder.png": "cannot be written (it is a folder)",
    }.items():
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        assert f"--plot: {tmp_path / name} {words}" in refused(run(*verb, "--plot", tmp_path / name))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written (permission denied)" in refused(run(*verb, "--plot", tmp_path / "p.png"))


def test_a_disk_that_fills_up_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = save(tmp_path / "m.safetensors", w=weights(np.float32))
    monkeypatch.setattr(os, "fsync", full)
    for verb in (["forecast", path, "--lr", "1"], ["compare", path, path]):
        said = refused(run(*verb, "--plot", tmp_path / "p.png"))
        assert said == f"--plot: {tmp_path / 'p.png'} cannot be written (no space left on device); name a file that can."
    assert [child.name for child in tmp_path.iterdir()] == ["m.safetensors"]
