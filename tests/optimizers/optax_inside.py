"""Optax's own tests of its optimizers, with every optimizer inside `track`.

    python -m tests.optimizers.optax_inside                          as `track` comes
    python -m tests.optimizers.optax_inside --every 3 --state        with looks of one update in three, and at all of the state
    python -m tests.optimizers.optax_inside -k test_preserve_dtype   what else pytest takes

The tests are those that Optax installs beside itself; they take many minutes. Functions of Optax that call each other get bare
optimizers, so that each is wrapped once, outermost.

Two ask for more than the same updates, and fail: `test_optimizers_can_be_wrapped_in_inject_hyperparams` compares states,
and what a moment keeps without gradient (`StateRecord.kept`) is unknown where its decay is traced; `test_optimizers` with
`schedule_free` gives `schedule_free_eval_params` the whole state, which takes `state.inner`.
"""

import argparse
import functools
import sys
import types
from pathlib import Path
from typing import Any

import optax
import pytest
from optax import contrib
from optax._src import alias

from precisionlab.optimizers import track

# Parts of optimizers, which Optax's tests chain with others.
PARTS = {"reduce_on_plateau", "normalize", "differentially_private_aggregate", "split_real_and_imaginary"}


def wrap_everything(**options: Any) -> None:
    """Put every public optimizer of `optax._src.alias` and `optax.contrib` inside `track`, wherever it is imported."""
    depth = [0]
    bare: dict[int, tuple[Any, Any]] = {}

    def wrapped(make: Any) -> Any:
        @functools.wraps(make)
        def made(*args: Any, **kwargs: Any) -> Any:
            def inside(value: Any) -> Any:
                return bare[id(value)][1] if id(value) in bare else value

            depth[0] += 1
            try:
                found = make(*map(inside, args), **{name: inside(value) for name, value in kwargs.items()})
            finally:
                depth[0] -= 1
            if depth[0] or not isinstance(found, optax.GradientTransformation):
                return found
            tracked = track(found, **options)
            bare[id(tracked)] = tracked, found  # both, so that no other takes the place in memory
            return tracked

        return made

    found = {}
    for space in (alias, contrib):
        for name, make in vars(space).items():
            ours = isinstance(make, types.FunctionType) and make.__module__.startswith(("optax._src.alias", "optax.contrib"))
            if ours and not name.startswith(("_", "scale_by_")) and name not in PARTS:
                found[make] = wrapped(make)
    for name, module in list(sys.modules.items()):
        for attribute, value in list(vars(module).items()) if name.startswith("optax") else ():
            if isinstance(value, types.FunctionType) and value in found:
                setattr(module, attribute, found[value])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--state", action="store_true")
    options, others = parser.parse_known_args()
    wrap_everything(every=options.every, state=options.state or None)
    folder = Path(optax.__file__).parent
    files = [folder / "_src" / "alias_test.py", folder / "contrib" / "_common_test.py"]
    return pytest.main(["-q", "-c", "/dev/null", "-p", "no:cacheprovider", *map(str, files), *others])


if __name__ == "__main__":
    sys.exit(main())
