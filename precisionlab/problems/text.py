"""Real text that is on every machine: Python's own standard library, read byte by byte.

The corpus is the top-level modules of the running interpreter's library, in alphabetical order, cut at a size; every
tenth file is for testing. It differs between versions of Python, so it carries a digest for the record of a run. The
model is the small transformer of `networks`.
"""

import hashlib
import math
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, PRNGKeyArray
from precisionlab.problems.base import Problem, cross_entropy, uniform_indices, whole
from precisionlab.problems.networks import transformer_apply, transformer_init

__all__ = ["Corpus", "load_bytes", "text"]


class Corpus(NamedTuple):
    """Source text as bytes.

    Attributes:
        train: (bytes,) uint8, read-only; files follow each other with a zero byte between them.
        test: the same, of other files.
        files: the names of the files, in order.
        digest: SHA-256 of the training bytes and the test bytes, in hexadecimal.
    """

    train: np.ndarray
    test: np.ndarray
    files: tuple[str, ...]
    digest: str


@lru_cache(maxsize=4)
def load_bytes(limit: int = 1_000_000, folder: str | None = None) -> Corpus:
    """The sources of the standard library, up to a size.

    Args:
        limit: how many bytes to read in all; the last file is cut there.
        folder: where to look for `*.py`; None is the running interpreter's library.

    Returns:
        The corpus, every tenth file in its test part. The first ten files or so must fit into `limit`.

    Raises:
        FileNotFoundError: if fewer than ten files with something in them are found within the limit.

    Example:
        >>> corpus = load_bytes(200_000)
        >>> len(corpus.train) + len(corpus.test) > 199_000, bytes(corpus.train[:3])
        (True, b'\"\"\"')
    """
    limit = whole("text: limit", limit, 1)
    root = Path(sysconfig.get_paths()["stdlib"] if folder is None else folder)
    files: list[tuple[str, bytes]] = []
    remaining = limit
    for path in sorted(root.glob("*.py")):
        content = path.read_bytes()[:remaining]
        if content:
            files.append((path.name, content))
            remaining -= len(content)
        if not remaining:
            break
    if len(files) < 10:
        raise FileNotFoundError(
            f"text: found {len(files)} Python sources in {root} within {limit:,} bytes, and at least 10 are needed; "
            f"raise the limit, install the sources of the standard library, or name a folder of *.py files."
        )
    testing = [content for number, (_, content) in enumerate(files) if number % 10 == 9]
    training = [content for number, (_, content) in enumerate(files) if number % 10 != 9]
    train, test = (np.frombuffer(b"\0".join(part), np.uint8) for part in (training, testing))
    digest = hashlib.sha256(train.tobytes() + test.tobytes()).hexdigest()
    return Corpus(train, test, tuple(name for name, _ in files), digest)


def text(
    context: int = 32,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    batch_size: int = 32,
    limit: int = 1_000_000,
    windows: int = 256,
) -> Problem:
    """Predicting the next byte of Python source.

    A batch is `(inputs, targets)`, both (batch, context) int32, the targets one byte later. Metrics: `train_loss` and
    `test_loss` in nats per byte, `train_bits_per_byte` and `test_bits_per_byte`, on evenly spaced windows. A model that
    knows nothing scores log(256) = 5.55 nats, 8 bits.

    Args:
        context: bytes seen at once.
        width: of the residual stream; a multiple of heads.
        heads: of each attention.
        layers: blocks of attention and feed-forward.
        batch_size: windows in a minibatch.
        limit: size of the corpus in bytes.
        windows: how many windows `evaluate` reads from each part of the corpus.

    Raises:
        FileNotFoundError: if this Python came without its sources.
        ValueError: if a number is out of range, or a part of the corpus is shorter than a window.

    Example:
        >>> problem = text(context=8, width=16, layers=1, limit=200_000)
        >>> params = problem.init(jax.random.key(0))
        >>> inputs, targets = problem.batch(jax.random.key(1))
        >>> inputs.shape, bool((inputs[:, 1:] == targets[:, :-1]).all())
        ((32, 8), True)
    """
    corpus = load_bytes(limit)
    context, batch_size = whole("text: context", context, 1), whole("text: batch_size", batch_size, 1)
    windows = whole("text: windows", windows, 1)
    jax.eval_shape(lambda: transformer_init(jax.random.key(0), context, width, heads, layers))  # mistakes raise here
    shortest = min(len(corpus.train), len(corpus.test))
    if context >= shortest:
        raise ValueError(
            f"text: context={context} leaves no window in a part of {shortest:,} bytes; shorten it or raise limit={limit}."
        )
    train_bytes = jnp.asarray(corpus.train)

    def cut(source: Array, starts: Array) -> tuple[Array, Array]:
        places = starts[:, None] + jnp.arange(context + 1, dtype=jnp.int32)[None, :]
        rows = source.at[places].get(mode="promise_in_bounds").astype(jnp.int32)
        return rows[:, :-1], rows[:, 1:]

    def evenly(source: np.ndarray) -> tuple[Array, Array]:
        starts = np.linspace(0, len(source) - context - 1, windows).astype(np.int32)
        return cut(jnp.asarray(source), jnp.asarray(starts))

    train, test = evenly(corpus.train), evenly(corpus.test)

    def loss(params: Any, batch: tuple[Array, Array]) -> Array:
        inputs, targets = batch
        return cross_entropy(transformer_apply(params, inputs, heads), targets)

    def batch(key: PRNGKeyArray) -> tuple[Array, Array]:
        return cut(train_bytes, uniform_indices(key, (batch_size,), train_bytes.shape[0] - context))

    def evaluate(params: Any) -> dict[str, Array]:
        losses = {"train": loss(params, train), "test": loss(params, test)}
        nats = {f"{part}_loss": value for part, value in losses.items()}
        return nats | {f"{part}_bits_per_byte": value / math.log(2) for part, value in losses.items()}

    def init(key: PRNGKeyArray) -> dict[str, Any]:
        return transformer_init(key, context, width, heads, layers)

    return Problem("text", init, loss, batch, evaluate, train)
