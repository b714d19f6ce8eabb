"""Everything that an accelerator should be asked, in under eight minutes.

The tests marked `gpu`; rounding and blocks against the memory floor; a tracked transformer of width 512 (32 x 64 tokens), its
compilation and its steps; sums in a stated order; every operation of a transformer rounded. Each part runs in a process of its
own, so that one that fails leaves the others alone, and none begins after seven minutes. Run with
`python -m benchmarks.accelerator`, with `--json FOLDER` to keep the figures.
"""

import subprocess
import sys
import time
from pathlib import Path

import jax

PARTS = {
    "tests": ["pytest", "-m", "gpu", "-q", "-n", "0"],
    "rounding": ["benchmarks.rounding"],
    "tracking": ["benchmarks.tracking", "--device"],
    "compiling": ["benchmarks.compiling", "--device"],
    "accumulating": ["benchmarks.accumulating"],
    "simulating": ["benchmarks.simulating"],
}
LATEST, ALL = 420.0, 480.0
"""Seconds after which no part begins, and after which what runs is stopped."""


def main() -> bool:
    """Run every part, and say whether all of them came to their end."""
    folder = Path(sys.argv[sys.argv.index("--json") + 1]) if "--json" in sys.argv else None
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    begin, failed = time.monotonic(), []
    for name, (module, *options) in PARTS.items():
        spent = time.monotonic() - begin
        if spent > LATEST:
            failed.append(f"{name} (no time left)")
            continue
        kept = ["--json", str(folder / f"{name}.json")] if folder is not None and module != "pytest" else []
        print(f"== {name}, after {spent:.0f} s", flush=True)
        try:
            code = subprocess.run([sys.executable, "-m", module, *options, *kept], timeout=ALL - spent, check=False).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if code:
            failed.append(f"{name} ({'stopped' if code == -1 else f'status {code}'})")
    print(f"== {time.monotonic() - begin:.0f} s; not at their end: {', '.join(failed) or 'none'}")
    return not failed


if __name__ == "__main__":
    sys.exit(not main())
