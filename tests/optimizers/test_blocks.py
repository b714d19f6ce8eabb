"""Leaves of any sizes, cut into rows and blocks: every entry is seen once, in its place."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.optimizers.meaning.recipes import recipes
from precisionlab.optimizers.tracking.blocks import in_blocks
from precisionlab.optimizers.tracking.plans import by_leaf, first_of, plan
from precisionlab.stagnation.rows import ENTRIES

SIZES = {
    "one entry": [1],
    "a row and one more": [4 * ENTRIES + 1],
    "small ones": [7, 64, 960, 961, 4096],
    "large ones": [4097, 30_720, 30_721, 100_000],
    "both": [5, 31_000, 64, 16_384, 64, 16_384, 1],
    "long rows": [1 << 22, 3, 70_000],
}


@pytest.mark.parametrize("looped", [True, False])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_entry_is_in_one_row(sizes: list[int], looped: bool) -> None:
    cut = plan(sizes, looped=looped)
    assert cut.leaf.shape == cut.start.shape == cut.low.shape == (len(cut.which), cut.height)
    seen = [np.zeros(size, int) for size in sizes]
    for leaves, starts, lows in zip(cut.leaf, cut.start, cut.low, strict=True):
        for leaf, start, low in zip(leaves, starts, lows, strict=True):
            place = np.arange(start, start + cut.row)
            seen[leaf][place[(place >= low) & (place < sizes[leaf])]] += 1
    assert all((each == 1).all() for each in seen)
    assert looped or len(cut.which) <= 8
    # What is looked at for nothing: the ends of rows and of blocks.
    assert cut.leaf.size * cut.row <= 1.5 * sum(sizes) + cut.height * cut.row + len(sizes) * cut.row


def rows_of(shapes: list[tuple[int, ...]]) -> list[Any]:
    random = np.random.default_rng(0)
    return [jnp.asarray(np.float32(random.integers(-8, 9, shape))) for shape in shapes]


@pytest.mark.parametrize("looped", [True, False])
def test_blocks_hold_the_rows_and_say_where_they_are(looped: bool) -> None:
    leaves = rows_of([(5,), (70, 70), (3, 40, 50), (2, 3, 4), (1, 90_001), (31, 1100)])

    def found(leaves: Any) -> Any:
        # A sum for each index of the last axis tells whether an entry is taken for another.
        def rows(leaves: Any) -> Any:
            places = [jax.lax.broadcasted_iota(jnp.int32, leaf.shape, leaf.ndim - 1) for leaf in leaves]
            weights = [(1 + place % 61).astype(jnp.float32) for place in places]
            return [(leaf, leaf * weight) for leaf, weight in zip(leaves, weights, strict=True)], ()

        made = recipes(rows, (leaves,)).of((leaves,), ())
        numbers: dict[Any, list[int]] = {}
        for number, recipe in enumerate(made):
            numbers.setdefault(recipe.kind, []).append(number)
        results: dict[int, Any] = {}
        for group in numbers.values():
            cut = plan([leaves[number].size for number in group], looped=looped)

            def counted(row: Any, block: Any) -> Any:
                plain, weighed = (jnp.where(block.real, each, 0) for each in row)
                return (
                    plain.sum((1, 2)),
                    weighed.sum((1, 2)),
                    jnp.where(block.real, block.place, -1).max((1, 2)),
                    row[0][:, 0, :2],
                )

            one, two, last, first = in_blocks(counted, [made[number] for number in group], cut, looped=looped)
            columns = (
                by_leaf(one, cut, jnp.sum, 0),
                by_leaf(two, cut, jnp.sum, 0),
                by_leaf(last, cut, jnp.max, -1),
                first_of(first, cut),
            )
            results |= {number: [column[place] for column in columns] for place, number in enumerate(group)}
        return [results[number] for number in range(len(leaves))]

    for leaf, (plain, weighed, last, first) in zip(leaves, jax.jit(found)(leaves), strict=True):
        values = np.asarray(leaf)
        assert float(plain) == values.sum()
        assert float(weighed) == (values * (1 + np.arange(values.shape[-1]) % 61)).sum()
        assert int(last) == values.size - 1
        assert first.tolist() == values.reshape(-1)[:2].tolist()
