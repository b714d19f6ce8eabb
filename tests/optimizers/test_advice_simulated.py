"""Whatever `advise` says is what that program does: each sentence is held against the program itself, run before and run on.

Every optimizer of Optax and of its contrib that an update of gradients and parameters (and a loss) is enough for, on weights in
each dtype. Counts are numpy's, from the weights and the state before and after each step. What was meant of the state is what
the optimizer makes of the same numbers in float64. Cures are applied and run.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import precisionlab as pl
from precisionlab.optimizers import Advice, Record, advise, apply_updates, kahan, round_params, round_state, stagnation, track
from tests.recount import wide

pytestmark = pytest.mark.filterwarnings("ignore::precisionlab.optimizers.MisplacedWarning")


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


RATE = 1e-3
STEPS = 60
NOTABLE = 0.05


def _named(module: Any, names: str, **options: Any) -> dict[str, Callable[[], Any]]:
    return {name: (lambda make=getattr(module, name): make(RATE, **options)) for name in names.split()}


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    **_named(
        optax,
        "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam nadamw "
        "novograd optimistic_adam_v2 optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd signum sm3 yogi",
    ),
    **_named(
        contrib, "acprop ademamix adopt cocob dadapt_adamw dog dowg madgrad momo momo_adam muon prodigy simplified_ademamix"
    ),
    "sgd_momentum": lambda: optax.sgd(RATE, momentum=0.9),
    "sgd_nesterov": lambda: optax.sgd(RATE, momentum=0.99, nesterov=True),
    "rmsprop_momentum": lambda: optax.rmsprop(RATE, decay=0.999, momentum=0.9, centered=True),
    "adam_narrow_mu": lambda: optax.adam(RATE, mu_dtype=jnp.bfloat16),
    "noisy_sgd": lambda: optax.noisy_sgd(RATE),
    "ema": lambda: optax.chain(optax.ema(0.995, debias=False), optax.scale(-RATE)),
    "sum": lambda: optax.chain(optax.apply_every(4), optax.scale(-RATE)),
    "schedule_free_sgd": lambda: contrib.schedule_free_sgd(RATE),
    "schedule_free_adamw": lambda: contrib.schedule_free_adamw(RATE),
    "mechanize": lambda: contrib.mechanize(optax.adam(RATE)),
    "galore": lambda: contrib.galore(RATE, rank=2),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(RATE), 4).gradient_transformation(),
    "lookahead_free": lambda: optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(-RATE)),
}

DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2")
FIRST = {("sgd_momentum", "float16"), ("adagrad", "bfloat16")}
"""What every run of the tests takes."""
SECOND = {("adam", "bfloat16"), ("adagrad", "float8_e4m3fn"), ("mechanize", "bfloat16"), ("dog", "bfloat16")}
"""What is slow, and taken by CI; all others take many minutes."""


def in_float32(optimizer: Any) -> Any:
    """The same optimizer with its state and its updates in float32."""
    inner = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return inner.update(optax.tree.cast(updates, jnp.float32), state, optax.tree.cast(params, jnp.float32), **extra)

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(optax.tree.cast(params, jnp.float32)), update)


def leaves(tree: Any) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    held = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}
    return {path: wide(leaf).astype(float) for path, leaf in held.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}


class Step(NamedTuple):
    """What there was before an update, and what it gave."""

    params: Any
    state: Any
    grads: Any
    updates: Any
    after: Any
    memory: Any


class Run:
    """A program that runs, one update after the other."""

    def __init__(self, optimizer: Any, params: Any) -> None:
        self.optimizer = optax.with_extra_args_support(optimizer)
        self.params, self.state = params, self.optimizer.init(params)
        self.steps: list[Step] = []

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, memory = self.optimizer.update(grads, state, params, value=jnp.float32(1))
            return updates, apply_updates(params, updates), memory

        self._step = jax.jit(step)

    def on(self, gradients: Any, steps: int) -> "Run":
        for number in range(steps):
            grads = gradients(self.params, number)
            updates, params, state = self._step(self.params, self.state, grads)
            self.steps.append(Step(self.params, self.state, grads, updates, params, state))
            self.params, self.state = params, state
        return self


def parameters(dtype: Any) -> Any:
    random = np.random.default_rng(0)
    kernel = random.standard_normal((12, 12)) * 0.3
    return {"dense": {"kernel": jnp.asarray(kernel, dtype)}, "norm": {"scale": jnp.ones(12, dtype)}}


def falling(params: Any, number: int) -> Any:
    """Gradients that shrink half way, so that averages have something to forget."""
    random, size = np.random.default_rng(number), 1.0 if number < STEPS // 2 else 0.125
    return jax.tree.map(lambda w: jnp.asarray(size * random.standard_normal(w.shape), w.dtype), params)


def nothing(params: Any, number: int) -> Any:
    del number
    return jax.tree.map(jnp.zeros_like, params)


def share_of(text: str) -> float:
    return {"all": 1.0, "perhaps none": 0.0}.get(text) if text in ("all", "perhaps none") else float(text.split()[-2]) / 100


def close(said: float, is_so: float) -> bool:
    """Two digits are shown, more from 99.5 % on, and never 100 % for less."""
    shown = 10.0 ** (math.floor(math.log10(said)) - 1) if 0 < said < 0.995 else 1e-4
    return abs(said - is_so) <= 0.51 * shown


def paths_of(advice: Advice, held: dict[str, Any]) -> list[str]:
    pattern = re.compile(re.escape(advice.path).replace(r"\*", r"\d+") + "$")
    return [path for path in held if pattern.match(path)]


class Case:
    """A tracked run, and the checks of what was advised after it, by kind."""

    def __init__(self, make: Callable[[], Any], dtype: str) -> None:
        self.make, self.dtype, self.fmt = make, jnp.dtype(dtype), pl.FORMATS[dtype]
        self.state = True if dtype == "float32" else None
        self.run = Run(track(make(), state=self.state), parameters(self.dtype)).on(falling, STEPS)
        self.record: Record = stagnation(self.run.state)
        self.found = advise(self.record)

    def check(self) -> list[str]:
        for advice in self.found:
            getattr(self, advice.kind)(advice)
            del self.run.steps[STEPS:]  # what it was run on
        self.nothing_is_left_out()
        return [advice.kind for advice in self.found]

    # Counts

    def reads(self, advice: Advice) -> list[Step]:
        many = re.search(r"in the last (\d+) reads", advice.sentence)
        return self.run.steps[-int(many.group(1)) if many else -1 :]

    def lost(self, steps: list[Step], paths: list[str] | None = None) -> tuple[int, int]:
        """Updates of the weights that were lost, and all that were asked for."""
        lost = asked = 0
        for step in steps:
            old, u, new = (leaves(tree) for tree in (step.params, step.updates, step.after))
            for path in old if paths is None else paths:
                finite = np.isfinite(old[path]) & np.isfinite(u[path]) & np.isfinite(new[path])
                asked += int((finite & (u[path] != 0)).sum())
                lost += int((finite & (u[path] != 0) & (old[path] == new[path])).sum())
        return lost, asked

    def nothing_is_left_out(self) -> None:
        told = {path for a in self.found if a.site == "weights" for path in paths_of(a, leaves(self.run.params))}
        for path in leaves(self.run.params):
            lost, asked = self.lost(self.run.steps[-1:], [path])
            assert path in told or lost < NOTABLE * max(asked, 1), path

    # Of the weights

    def fine(self, advice: Advice) -> None:
        lost, asked = self.lost(self.run.steps[-1:])
        assert advice.sentence.startswith("Updates land: ")
        assert close(share_of(advice.sentence.split(": ")[1].split(" of ")[0]), lost / asked)
        assert f" of {asked:,} lost" in advice.sentence

    def unknown(self, advice: Advice) -> None:
        assert "Nothing was asked" in advice.sentence
        assert self.lost(self.run.steps[-1:]) == (0, 0)

    def zero(self, advice: Advice) -> None:
        step = self.run.steps[-1]
        for path in paths_of(advice, leaves(step.params)):
            assert (leaves(step.updates)[path] == 0).all()
            assert f"though {(leaves(step.grads)[path] != 0).sum()} entries of the gradient were not" in advice.sentence

    def nonfinite(self, advice: Advice) -> None:
        if advice.site == "weights":
            step, held = self.run.steps[-1], leaves(self.run.params)
            trees = [leaves(tree) for tree in (step.params, step.updates, step.after)]
            paths = paths_of(advice, held)
            count = sum(int((~np.all([np.isfinite(tree[path]) for tree in trees], axis=0)).sum()) for path in paths)
            assert f"{count} of {sum(held[path].size for path in paths)} entries" in advice.sentence

    def frozen(self, advice: Advice) -> None:
        step = self.run.steps[-1]
        paths = paths_of(advice, leaves(step.params))
        lost, asked = self.lost(self.reads(advice), paths)
        assert advice.share == pytest.approx(lost / asked, rel=1e-6)
        assert close(share_of(re.search(r": (.*? %) of the updates", advice.sentence).group(1)), lost / asked)
        old, u, new = ({p: leaves(tree)[p] for p in paths} for tree in (step.params, step.updates, step.after))
        w, u, new = (np.concatenate([side[path].ravel() for path in paths]) for side in (old, u, new))
        stuck = (u != 0) & (w == new) & np.isfinite(w)
        sizes = re.search(r"step must exceed (\S+?)(?: for the smallest of them to (\S+) for the largest)? \(", advice.sentence)
        outward = np.where(w < 0, -1, 1)

        def moves(step: Any) -> np.ndarray:
            before = jnp.asarray(w, self.dtype)
            return wide(apply_updates(before, jnp.asarray(step, jnp.float32))) != w

        if sizes:
            low, high = float(sizes.group(1)), float(sizes.group(2) or sizes.group(1))
            assert moves(outward * high * 1.06)[stuck].all()
            assert not moves(outward * low * 0.94)[stuck].any()
        if chance := re.search(r"Stochastic rounding would land about (.*? %)", advice.sentence):
            held, step = jnp.tile(jnp.asarray(w, self.dtype), (64, 1)), jnp.tile(jnp.asarray(u, jnp.float32), (64, 1))
            cure = round_params(self.fmt, pl.stochastic)
            updates, _ = cure.update(step, cure.init(held), held)
            landed = (wide(held) + wide(updates) != wide(held))[:, u != 0].mean()
            said = share_of(chance.group(1))
            assert landed / 1.5 - 0.02 <= said <= landed * 1.5 + 0.02  # of bins that are an octave wide
        if kept := re.search(r"would keep (.*?) of them|floor, (.*?) of them", advice.sentence):
            held, cure = jnp.asarray(w, self.dtype), kahan(self.fmt)
            updates, after = cure.update(jnp.asarray(u, jnp.float32), cure.init(held), held)
            keeps = ((wide(updates) != 0) | (wide(jax.tree.leaves(after.residual)[0]) != 0))[u != 0].mean()
            assert share_of(kept.group(1) or kept.group(2)) <= keeps + 0.006
        single = w.astype(np.float32)  # as it would be stored
        if advice.cure == "float32":
            assert self.dtype.itemsize < 4
            assert (single + u.astype(np.float32) == single)[stuck].mean() < 0.5
        if "Float32 would lose the largest of them too" in advice.sentence and stuck.any():
            largest = np.abs(single[stuck]).max()
            assert largest + np.float32(np.abs(u[u != 0]).mean()) == largest

    # Of the state

    def state_leaf(self, advice: Advice, steps: list[Step]) -> list[tuple[np.ndarray, np.ndarray]]:
        inner = [(leaves(step.state.inner), leaves(step.memory.inner)) for step in steps]
        paths = paths_of(advice, inner[-1][0])
        return [tuple(np.concatenate([side[path].ravel() for path in paths]) for side in pair) for pair in inner]

    def meant(self, advice: Advice, step: Step) -> Any:
        """The leaf as the optimizer makes it of the same numbers in float64; None if it cannot."""
        with jax.enable_x64(True):
            double = jax.tree.map(
                lambda leaf: jnp.asarray(wide(leaf), jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
                (step.grads, getattr(step.state, "inner", step.state), step.params),
            )
            optimizer = optax.with_extra_args_support(self.make())
            try:
                after = leaves(optimizer.update(*double, value=jnp.float64(1))[1])
            except TypeError:  # It holds dtypes of its own, and cannot be made again by casts alone.
                return None
        return np.concatenate([after[path].ravel() for path in paths_of(advice, after)])

    def stalled(self, advice: Advice) -> None:
        steps = self.reads(advice)
        pairs = self.state_leaf(advice, steps)
        still = sum(int((old == new).sum()) for old, new in pairs)
        entries = sum(old.size for old, _ in pairs)
        window = self.window(advice)
        asked = window[0] + window[1] if len(steps) > 1 else entries
        # What is lost has not moved.
        assert advice.share * asked <= still * (1 + 1e-6) or len(steps) == 1
        (old, new), meant = pairs[-1], self.meant(advice, steps[-1])
        if self.stored(advice) >= 4:
            assert advice.cure is None
        if meant is None:
            return
        asked = np.abs(meant - old) > np.abs(old) * 2.0**-24  # what float32 tells apart
        lost = asked & (old == new)
        if self.dtype.itemsize < 4 and len(steps) == 1:
            assert lost.sum() / max(asked.sum(), 1) == pytest.approx(advice.share, abs=0.1)
        if "Store it in float32" in advice.sentence:
            assert self.stored(advice) < 4
            wide_run = Run(in_float32(self.make()), parameters(self.dtype)).on(falling, STEPS)
            last, (path, *_) = wide_run.steps[-1], paths_of(advice, leaves(wide_run.state))
            before, after = leaves(last.state)[path].ravel(), leaves(last.memory)[path].ravel()
            wanted = self.meant(advice, last)[: before.size]
            failed = (np.abs(wanted - before) > np.abs(before) * 2.0**-23) & (before == after)
            assert failed.mean() <= 0.5 * lost.mean()
        if "round_state" in advice.sentence:
            self.by_chance(advice, steps[-1], old, meant)
        if "the storage itself" in advice.sentence:
            assert (np.abs(meant - old)[old == new] <= 2.0**-23 * np.abs(old)[old == new] + 1e-37).all()

    counter = unbiased = stalled

    def window(self, advice: Advice) -> tuple[float, float]:
        state: Any = self.record.state
        held = jax.tree_util.tree_leaves_with_path(state.window, is_leaf=lambda node: hasattr(node, "reads"))
        found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in held}
        rows = [found[path] for path in paths_of(advice, found)]
        return sum(float(row.lost) for row in rows), sum(float(row.kept) for row in rows)

    def stored(self, advice: Advice) -> int:
        assert self.record.storage is not None
        kinds = dict(self.record.storage.state)
        return min(kinds[path].itemsize for path in paths_of(advice, kinds))

    def cured(self) -> Any:
        return lambda seed: round_state(in_float32(self.make()), self.fmt, pl.stochastic, seed)

    def by_chance(self, advice: Advice, step: Step, old: np.ndarray, meant: np.ndarray) -> None:
        """One update from the state before it, many times: its mean is what was meant."""

        def stored(seed: Any) -> Any:
            cure = self.cured()(seed)
            begin = cure.init(step.params)
            inner = jax.tree.leaves(step.state.inner)
            same = [leaf.astype(like.dtype) for leaf, like in zip(inner, jax.tree.leaves(begin.inner), strict=True)]
            begin = begin._replace(inner=jax.tree.unflatten(jax.tree.structure(begin.inner), same))
            return cure.update(step.grads, begin, step.params, value=jnp.float32(1))[1].inner

        drawn = leaves(jax.jit(jax.vmap(stored))(jnp.arange(400)))
        table = np.concatenate([drawn[path].reshape(400, -1) for path in paths_of(advice, drawn)], 1)
        use = np.isfinite(meant) & np.isfinite(table).all(0)
        exponent = np.frexp(np.maximum(np.abs(old), np.abs(meant)))[1] - 1
        gap = 2.0 ** (np.maximum(exponent, self.fmt.emin) - self.fmt.precision + 1)
        asked = ((meant - old) / gap)[use]
        came = ((table.mean(0) - old) / gap)[use]
        # In gaps, each in the direction of its update: 400 draws of each entry, of which all but whole gaps are by chance.
        noise = math.sqrt(np.minimum(np.abs(asked), 1).sum() / 400)
        assert abs((np.sign(asked) * (came - asked)).sum()) <= 6 * noise + 7 / 400 + 1e-4 * np.abs(asked).sum()

    def forgetful(self, advice: Advice) -> None:
        decay = float(re.search(r"multiplied by (\S+) as meant, by 1 as stored", advice.sentence).group(1))
        assert 0 < decay < 1
        old, new = self.state_leaf(advice, self.run.steps[-1:])[-1]
        meant = self.meant(advice, self.run.steps[-1])
        if "should have fallen" in advice.sentence and meant is not None:
            assert (meant < old).any()
            assert not ((new < old) & (meant < old)).any()
        # Without gradients it keeps what it has; as meant, in float32 and rounded by chance it forgets alike.
        self.run.on(nothing, 10)
        if "multiplied" in advice.sentence:
            assert (np.abs(self.state_leaf(advice, self.run.steps[-1:])[-1][1]) >= 0.999 * np.abs(new)).all()
        with jax.enable_x64(True):
            exact = self.left(advice, self.make(), parameters(jnp.float64))
        assert self.left(advice, in_float32(self.make()), parameters(self.dtype)) == pytest.approx(exact, rel=2e-3)
        if "round_state" in advice.sentence:
            assert self.left(advice, self.cured()(0), parameters(self.dtype)) == pytest.approx(exact, rel=0.1)

    def left(self, advice: Advice, optimizer: Any, params: Any) -> float:
        """What is left of the leaf after many updates without gradient."""
        run = Run(optimizer, params).on(falling, 5)
        begin = leaves(run.state)
        run.on(nothing, 120)
        path = next(path for path in begin if path.endswith(advice.path))
        return float(np.abs(leaves(run.state)[path]).sum() / np.abs(begin[path]).sum())


def runs(make: Callable[[], Any], dtype: str) -> bool:
    """Whether Optax's own program takes weights of the dtype, a second time too."""
    params = parameters(jnp.dtype(dtype))

    def twice() -> Any:
        optimizer = optax.with_extra_args_support(make())
        state = optimizer.init(params)
        for _ in range(2):
            _, state = optimizer.update(params, state, params, value=jnp.float32(1))
        return state

    try:
        jax.eval_shape(twice)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


def _marked(name: str, dtype: str) -> Any:
    return pytest.mark.slow if (name, dtype) in SECOND else pytest.mark.thorough


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) in FIRST else _marked(name, dtype))
        for dtype in DTYPES
        for name in OPTIMIZERS
    ],
)
def test_what_is_said_is_what_the_program_does(name: str, dtype: str) -> None:
    make = OPTIMIZERS[name]
    if not runs(make, dtype):
        assert dtype.startswith("float8"), "Optax takes every wider dtype"
        return
    assert Case(make, dtype).check()
