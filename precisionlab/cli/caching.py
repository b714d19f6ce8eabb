"""Programs that `run` has compiled are kept in the folder of runs, so that the next run starts in seconds.

    runs/.compiled/1f0c77a2b3d4/    by what the processor can do, and by who asks
        jit_step-…-cache            one file a program, named and read by JAX's persistent compilation cache

JAX decides which file answers: its key holds the program, the versions of JAX and XLA, their flags and the device. What it
leaves open is settled here. Code made for one processor may die on another, and is run by whoever loads it: hence the folder's
name, and a look at its owner. A file that was cut off is deleted and compiled again. JAX's own limit on the size reads every
entry for each that it adds (57 seconds for 2,000 of them): instead, what was not used for longest goes when a run begins. Who
has named a cache of his own (JAX_COMPILATION_CACHE_DIR) keeps that one, as he has set it.
"""

import contextlib
import hashlib
import os
import platform
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from precisionlab.cli import terminal

__all__ = ["LIMIT", "programs_kept", "trim"]

LIMIT = 2**30
"""Bytes that may be kept in a folder of runs."""

_TROUBLE = r"Error (reading|writing) persistent compilation cache entry for '([^']*)': (.*)"


@contextlib.contextmanager
def programs_kept(root: Path, wanted: bool = True) -> Iterator[None]:
    """Inside, what JAX compiles is taken from the folder of runs, or compiled and kept there; its settings are restored after.

    Args:
        root: the folder that holds all runs.
        wanted: if not, everything is compiled, and nothing kept or read, in whatever cache.
    """
    import jax

    if not wanted:
        with _settings(jax_enable_compilation_cache=False):
            yield
        return
    config: Any = jax.config
    folder = _folder(root) if config.jax_enable_compilation_cache and not config.jax_compilation_cache_dir else None
    if folder is None:
        yield
        return
    asked: dict[str, Any] = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # a run compiles hundreds of small programs
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if jax.__version_info__ < (0, 11):
        # On CPU it takes two preferences of its compiler for features that the processor lacks, and says so, in 4 kB a program
        # that it then loads all the same (jax-ml/jax#38445).
        asked["jax_logging_level"] = "CRITICAL"
    try:
        with _settings(**asked), _troubles(folder):
            yield
    finally:
        for place in (folder, folder.parent):  # nothing was compiled: nothing is left behind
            with contextlib.suppress(OSError):
                place.rmdir()


@contextlib.contextmanager
def _settings(**asked: Any) -> Iterator[None]:
    """JAX's settings for a while. It opens its cache only once, so it must be told to look again."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = {name: getattr(jax.config, name) for name in asked}
    compilation_cache.reset_cache()
    try:
        for name, value in asked.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _folder(root: Path) -> Path | None:
    """Where programs for this processor and this user are kept; None, and a sentence, where they cannot be."""
    folder = root.resolve() / ".compiled" / _machine()
    try:
        trim(folder.parent, LIMIT)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        foreign = hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()
        if foreign or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(0, "it belongs to somebody else" if foreign else "permission denied")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        terminal.say(f"note: compiled programs are not kept in {folder} ({reason}); the next run compiles them again.")
        return None
    return folder


def _machine() -> str:
    """Twelve hex digits for what the processor can do (where it does not tell, for the machine's name), and for the user."""
    told = {platform.machine(), str(getattr(os, "getuid", int)())}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told |= {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))}
    except (OSError, UnicodeDecodeError):
        told |= {platform.node(), platform.processor()}
    return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()[:12]


def trim(folder: Path, limit: int) -> None:
    """Delete the files under a folder that were not used for longest, until the others take no more than `limit` bytes.

    Several processes may do so at once, while others read and write: who misses a file compiles.
    """
    held: list[tuple[float, int, Path]] = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            found = path.stat()
            if path.is_file():
                held.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    excess = sum(size for _, size, _ in held) - limit
    for _, size, path in sorted(held):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            excess -= size


@contextlib.contextmanager
def _troubles(folder: Path) -> Iterator[None]:
    """Clear away what JAX could not read, and tell in one sentence if it could not write: it warns of each program."""
    unwritten: list[str] = []
    usual = warnings.showwarning

    def show(message: Warning | str, *others: Any, **named: Any) -> None:
        found = re.match(_TROUBLE, str(message), re.DOTALL)
        if found is None:
            usual(message, *others, **named)
            return
        # The warning tells the program's name alone. JAX never writes over a file: left there, it would be wrong for ever.
        with contextlib.suppress(OSError):
            for path in [entry for entry in folder.iterdir() if entry.name.startswith(f"{found[2]}-")]:
                path.unlink(missing_ok=True)
        if found[1] == "writing":
            unwritten.append(found[3])

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="Error (reading|writing) persistent compilation cache entry")
        warnings.showwarning = show
        try:
            yield
        finally:
            if unwritten:
                terminal.say(
                    f"note: of the compiled programs {len(unwritten)} could not be kept in {folder} ({unwritten[0]}); the "
                    "results do not depend on it, and the next run compiles them again."
                )
