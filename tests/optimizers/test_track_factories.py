"""Every factory of Optax and optax.contrib inside `track`: the same updates and the same state, bit for bit.

Optax's own tests with every optimizer inside `track` are `python -m tests.optimizers.optax_inside` (minutes; see there).
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from precisionlab.optimizers import stagnation, track
from tests.optimizers.test_track_frameworks import bare

pytestmark = pytest.mark.filterwarnings("default")  # theirs; this file is about results

MASK = {"a": True, "b": False}
LABELS = {"a": "one", "b": "two"}


def _sam(make: Any) -> Any:
    return make(optax.sgd(0.1), optax.chain(contrib.normalize(), optax.sgd(0.1)))


# How each is called: the arguments, or a function of the factory where that does not say it.
WITH_RATE = """
    adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam nadamw novograd
    optimistic_adam optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam rmsprop rprop sgd sign_sgd signum sm3 yogi
    acprop ademamix adopt cocob dadapt_adamw dog dowg madgrad momo momo_adam muon prodigy schedule_free_adamw schedule_free_sgd
    simplified_ademamix sophia scale_by_madgrad scale_by_rprop scale scale_by_learning_rate clip clip_by_block_rms
    clip_by_global_norm adaptive_grad_clip add_decayed_weights
"""
WITHOUT = """
    centralize identity keep_params_nonnegative set_to_zero zero_nans normalize normalize_by_update_norm reduce_on_plateau
    hutchinson_estimator_diag_hessian scale_by_adadelta scale_by_adam scale_by_adamax scale_by_adan scale_by_amsgrad
    scale_by_belief scale_by_distance_over_gradients scale_by_factored_rms scale_by_lbfgs scale_by_lion scale_by_novograd
    scale_by_optimistic_gradient scale_by_param_block_norm scale_by_param_block_rms scale_by_polyak scale_by_radam scale_by_rms
    scale_by_rss scale_by_sign scale_by_sm3 scale_by_stddev scale_by_trust_ratio scale_by_yogi scale_by_acprop
    scale_by_ademamix scale_by_adopt scale_by_cocob scale_by_simplified_ademamix
"""
SAMPLES: dict[str, Any] = {
    **dict.fromkeys(WITH_RATE.split(), (0.1,)),
    **dict.fromkeys(WITHOUT.split(), ()),
    "scale_by_muon": lambda make: optax.masked(make(), MASK),  # of matrices
    "scale_by_galore": lambda make: optax.masked(make(rank=2), MASK),
    "scale_by_backtracking_linesearch": (3,),
    "scale_by_zoom_linesearch": (3,),
    "lbfgs": lambda make: make(linesearch=optax.scale_by_backtracking_linesearch(3)),
    "galore": lambda make: make(0.1, rank=2),
    "noisy_sgd": lambda make: make(0.1, key=0),
    "add_noise": lambda make: optax.chain(make(0.1, 0.5, key=0), optax.adam(0.1)),
    "apply_every": (2,),
    "ema": (0.9,),
    "trace": (0.9,),
    "scale_by_schedule": (lambda count: 0.1 / (1 + count),),
    "stateless": (lambda updates, params: jax.tree.map(lambda u, p: -0.1 * u + 0.01 * p, updates, params),),
    "stateless_with_tree_map": (lambda update, param: -0.1 * update + 0.01 * param,),
    "apply_if_finite": (optax.adam(0.1), 2),
    "flatten": (optax.adam(0.1),),
    "with_extra_args_support": (optax.adam(0.1),),
    "mechanize": (optax.sgd(0.1),),
    "split_real_and_imaginary": (optax.adam(0.1),),
    "schedule_free": (optax.sgd(0.1), 0.1),
    "chain": (optax.clip(0.5), optax.adam(0.1)),
    "named_chain": (("clip", optax.clip(0.5)), ("adam", optax.adam(0.1))),
    "conditionally_mask": (optax.adam(0.1), lambda step: step % 2 == 0),
    "conditionally_transform": (optax.adam(0.1), lambda step: step % 2 == 0),
    "masked": (optax.adam(0.1), MASK),
    "freeze": (MASK,),
    "selective_transform": lambda make: make(optax.adam(0.1), freeze_mask=MASK),
    "partition": ({"one": optax.adam(0.1), "two": optax.sgd(0.1)}, LABELS),
    "multi_transform": ({"one": optax.adam(0.1), "two": optax.set_to_zero()}, LABELS),
    "inject_hyperparams": lambda make: make(optax.adam)(learning_rate=0.1),
    "inject_stateful_hyperparams": lambda make: make(optax.adam)(learning_rate=0.1),
    "lookahead": (optax.adam(0.1), 2, 0.5),
    "sam": _sam,
    "snapshot": ("norm", optax.tree.norm),
    "measure_with_ema": (optax.tree.norm, 0.9),
    "monitor": ({"norm": optax.tree.norm},),
    "differentially_private_aggregate": lambda make: make(1.0, 0.1, key=0),
    "dpsgd": lambda make: make(0.1, 1.0, 0.1, 0),
    # Not in the namespaces as functions that say what they return.
    "MultiSteps": lambda make: make(optax.adam(0.1), 2).gradient_transformation(),
    "skip_not_finite": lambda make: optax.MultiSteps(optax.adam(0.1), 2, should_skip_update_fn=make).gradient_transformation(),
    "skip_large_updates": lambda make: optax.MultiSteps(
        optax.adam(0.1), 2, should_skip_update_fn=lambda *given: make(*given, max_squared_norm=1e6)
    ).gradient_transformation(),
}
BARE = ("optax._src.alias", "optax.contrib._dog", "optax.contrib._sophia")  # where functions do not say what they return
OBJECTIVE = ("sophia", "hutchinson_estimator_diag_hessian")
WANTED = {
    **dict.fromkeys(("momo", "momo_adam", "polyak_sgd", "reduce_on_plateau", "scale_by_polyak"), ("value",)),
    **dict.fromkeys(("lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"), ("value", "grad", "value_fn")),
}
PER_EXAMPLE = ("differentially_private_aggregate", "dpsgd")


def _factories() -> dict[str, Callable[..., Any]]:
    """What makes a transformation, as far as one can tell: by its annotation, or by the company that it keeps."""
    helpers = {"scale_gradient", "init_empty_state", "schedule_free_eval_params", "with_extra_args_support"}
    found = {}
    for space in (optax, contrib):
        for name, make in vars(space).items():
            if not isinstance(make, types.FunctionType | functools.partial) or name.startswith("_"):
                continue
            annotation = str(inspect.signature(make).return_annotation)
            near = inspect.unwrap(getattr(make, "func", make)).__module__.startswith(BARE)
            if "GradientTransformation" in annotation or near or name.startswith(("scale_by_", "skip_")):
                found[name] = make
    return {name: make for name, make in found.items() if name not in helpers - set(SAMPLES)} | {
        "MultiSteps": optax.MultiSteps,
        "monitor": optax.monitor,
    }


FACTORIES = _factories()


def made(name: str) -> Any:
    sample, make = SAMPLES[name], FACTORIES[name]
    optimizer = sample(make) if callable(sample) else make(*sample)
    return optax.with_extra_args_support(optimizer)


def test_every_factory_has_a_sample() -> None:
    """A new one in the next Optax is to be tried too; add it to `SAMPLES`."""
    assert set(SAMPLES) == set(FACTORIES)


@pytest.fixture(autouse=True)
def _as_users_have_it() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def loss(params: Any) -> Any:
    return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32) - 0.7)) for leaf in jax.tree.leaves(params))


def trained(name: str, optimizer: Any, dtype: Any, steps: int) -> Iterator[Any]:
    """Updates and state after each step; gradients are those of the loss, so that line searches end."""
    params = {"a": jnp.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3), "b": jnp.linspace(0.5, 2, 3, dtype=dtype)}
    slow = name == "lookahead"
    if slow:
        params = optax.LookaheadParams.init_synced(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        fast = params.fast if slow else params
        value, grads = jax.value_and_grad(loss)(fast)
        more = {"value": value, "grad": grads, "value_fn": loss}
        more = {"obj_fn": loss} if name in OBJECTIVE else {key: more[key] for key in WANTED.get(name, ())}
        if name in PER_EXAMPLE:
            grads = jax.tree.map(lambda leaf: jnp.stack([leaf, -2 * leaf]), grads)
        updates, state = optimizer.update(grads, state, params, **more)
        moved = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
        return updates, moved, state

    state = optimizer.init(params)
    for _ in range(steps):
        updates, params, state = step(params, state)
        yield updates, state


def bits(tree: Any) -> list[Any]:
    def raw(leaf: Any) -> Any:
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return [(leaf.dtype, raw(leaf).shape, raw(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def assert_the_same(name: str, dtype: Any, every: int, state: bool | None) -> None:
    plain = trained(name, made(name), dtype, every)
    tracked = trained(name, track(made(name), every=every, state=state), dtype, every)
    last = None
    for (one, before), (other, after) in zip(plain, tracked, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        assert bits(one) == bits(other)
        assert bits(before) == bits(bare(after))
        last = after
    record = stagnation(last)
    assert int(record.step) == every
    assert len(jax.tree.leaves(record.tally, is_leaf=lambda node: hasattr(node, "landed"))) == (4 if name == "lookahead" else 2)


QUICK = ["sophia", "add_noise", "dpsgd"]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_updates_and_states_are_the_same(name: str) -> None:
    index = QUICK.index(name)
    assert_the_same(name, (jnp.float32, jnp.bfloat16)[index % 2], (1, 3)[index % 2], True)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SAMPLES)
def test_updates_and_states_are_the_same_everywhere(name: str, dtype: str) -> None:
    for every in (1, 3):
        for state in (True, False) if dtype == "float32" else (True, None):
            assert_the_same(name, jnp.dtype(dtype), every, state)
