"""Where a number came from: versions, platform and git state, read without importing JAX."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["provenance"]

_PACKAGES = ("precisionlab", "jax", "jaxlib", "optax", "numpy", "ml_dtypes")


def provenance(**extra: Any) -> dict[str, Any]:
    """What a later reader needs to judge or repeat a run. No command line, user, host or folder name is kept.

    Args:
        **extra: what only the caller knows, such as the device and XLA_FLAGS.

    Returns:
        A JSON-able dict: `python`, `platform`, `versions` (None for a package that is not installed), `git` (commit and
        whether the checkout was dirty; None when precisionlab does not run from a checkout), and `extra`.

    Example:
        >>> found = provenance(device="cpu")
        >>> sorted(found), found["device"]
        (['device', 'git', 'platform', 'python', 'versions'], 'cpu')
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in _PACKAGES},
        "git": _git_state(Path(__file__)),
        **extra,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(source: Path) -> dict[str, Any] | None:
    """Commit and dirtiness of the checkout that tracks `source`.

    An installed package may lie inside somebody else's checkout (a virtual environment in a project), whose commit
    would say nothing about this code; hence the question whether this very file is tracked.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
