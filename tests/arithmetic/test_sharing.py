"""Programs that are called repeatedly are walked once, and every bit is the one of a walk where they stand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.arithmetic import operations
from precisionlab.arithmetic.programs import survey

LAYERS = 3
X, W = jnp.linspace(-1.0, 1.3, 6), jnp.linspace(-0.7, 0.9, LAYERS * 36).reshape(LAYERS, 6, 6)


@jax.jit
def layer(x: Any, w: Any, scale: float) -> Any:
    hidden = jnp.tanh(x @ w) * scale
    return x + hidden / jnp.sqrt(jnp.mean(hidden * hidden) + 0.01)


def model(x: Any, w: Any) -> Any:
    for number in range(LAYERS):
        x = layer(x, w[number], 1.7)
    return jnp.sum(x * x)


FORMATS: dict[str, Callable[[], Any]] = {
    "constant": lambda: pl.FLOAT8_E5M2,
    "traced": lambda: jax.tree.map(jnp.asarray, pl.BFLOAT16),
    "one traced rule": lambda: pl.Rules(jax.tree.map(jnp.asarray, pl.BFLOAT16)),
    "rules": lambda: pl.Rules(pl.BFLOAT16, primitives={"tanh": pl.FLOAT8_E4M3FN}),
}
MODES = {"nearest_even": pl.nearest_even, "stochastic": pl.stochastic, "upward": pl.upward}


def simulated(function: Callable[..., Any], fmt: Any, mode: Any) -> list[np.ndarray]:
    """The results' bits; what is traced of a format is an argument."""
    keys = {"key": jax.random.key(3)} if mode is pl.stochastic else {}
    numbers, structure = jax.tree.flatten(fmt)
    traced = [number for number in numbers if isinstance(number, jax.Array)]

    def run(x: Any, w: Any, traced: list[Any], keys: dict[str, Any]) -> Any:
        filled = jax.tree.unflatten(structure, traced) if traced else fmt
        return pl.simulate(function, filled, mode=mode)(x, w, **keys)

    return [np.asarray(leaf).view(np.uint32) for leaf in jax.tree.leaves(jax.jit(run)(X, W, traced, keys))]


def apart(*_: Any) -> frozenset[int]:
    """No program is called repeatedly."""
    return frozenset()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_bit_is_that_of_a_walk_where_it_stands(fmt: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = jax.value_and_grad(model, argnums=1)
    together = simulated(function, FORMATS[fmt](), MODES[mode])
    monkeypatch.setattr(survey, "repeated_programs", apart)
    assert all(map(np.array_equal, together, simulated(function, FORMATS[fmt](), MODES[mode])))


def counted(monkeypatch: pytest.MonkeyPatch, function: Callable[[], Any]) -> int:
    """How many operations a walk meets of which the result is a hyperbolic tangent."""
    met: list[str] = []
    results_of = operations.results_of

    def noted(eqn: Any, arrays: Any, frame: Any) -> Any:
        met.append(eqn.primitive.name)
        return results_of(eqn, arrays, frame)

    monkeypatch.setattr(operations, "results_of", noted)
    function()
    return met.count("tanh")


@pytest.mark.parametrize("mode", [pl.nearest_even, pl.stochastic])
def test_equal_layers_are_walked_once(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted(monkeypatch, lambda: simulated(model, pl.FLOAT8_E4M3FN, mode)) == 1


def test_layers_in_scopes_are_walked_once_for_each_where_rules_may_tell_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(x: Any, w: Any) -> Any:
        for number in range(LAYERS):
            with jax.named_scope(f"block_{number}"):
                x = layer(x, w[number], 1.7)
        return jnp.sum(x * x)

    rules = pl.Rules(pl.BFLOAT16, scopes={"block_2": pl.FLOAT8_E4M3FN})
    assert counted(monkeypatch, lambda: simulated(named, rules, pl.nearest_even)) == LAYERS


def test_layers_that_differ_in_a_constant_are_not_the_same() -> None:
    def two(x: Any, w: Any) -> Any:
        return layer(x, w[0], 1.7) + layer(x, w[0], 1.7) + layer(x, w[0], 0.3)

    def one_by_one(x: Any, w: Any) -> Any:
        return layer.__wrapped__(x, w[0], 1.7) + layer.__wrapped__(x, w[0], 1.7) + layer.__wrapped__(x, w[0], 0.3)

    first, second = (simulated(each, pl.FLOAT8_E4M3FN, pl.nearest_even) for each in (two, one_by_one))
    assert np.array_equal(first[0], second[0])


def test_a_table_of_keys_that_ends_within_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def long(x: Any, w: Any) -> Any:  # of some 9 draws each, in tables of 128
        for number in range(20):
            x = layer(x, w[number % LAYERS], 1.1)
        return x

    together = simulated(long, pl.FLOAT8_E4M3FN, pl.stochastic)
    monkeypatch.setattr(survey, "repeated_programs", apart)
    assert np.array_equal(together[0], simulated(long, pl.FLOAT8_E4M3FN, pl.stochastic)[0])
