"""From a request to a kept result: name the experiment, read its configuration, compute or resume, save the figure.

This is the work behind `precisionlab run`; whatever goes wrong becomes a `Failure`: one sentence and an exit status.
"""

import contextlib
import dataclasses
import io
import json
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from precisionlab._nearest import allowed_names
from precisionlab.cli import terminal
from precisionlab.cli.caching import programs_kept
from precisionlab.cli.terminal import Failure
from precisionlab.runs import store
from precisionlab.runs.configs import ConfigError, config_as_dict, parse_config, parse_settings
from precisionlab.runs.results import Result

__all__ = ["completed", "draw", "experiment_named", "placed", "requested_config", "sentences", "sized", "svgs"]


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turn the library's own exceptions into exit statuses."""
    try:
        yield
    except (ConfigError, store.RequestError) as error:
        raise Failure(str(error), 2) from error
    except store.RunError as error:
        raise Failure(str(error), 1) from error


def experiment_named(name: str | None) -> Any:
    """The experiment of that name; the main one if there is no name."""
    experiments = import_module("precisionlab.experiments")
    name = experiments.MAIN if name is None else name
    if name not in experiments.EXPERIMENTS:
        raise Failure(f'unknown experiment "{name}"; {allowed_names(name, sorted(experiments.EXPERIMENTS))}', 2)
    return experiments.EXPERIMENTS[name]


def placed(experiment: Any, placement: str | None, settings: Sequence[str]) -> Sequence[str]:
    """The settings, with the sites that a placement stands for."""
    if placement is None:
        return settings
    placements = import_module("precisionlab.arithmetic.policy").PLACEMENTS
    if placement not in placements:
        raise Failure(f'--placement: unknown placement "{placement}"; {allowed_names(placement, list(placements))}', 2)
    if "sites" not in {field.name for field in dataclasses.fields(experiment.config)}:
        raise Failure(f"--placement: {experiment.name} has no sites to round; run it without.", 2)
    if any(setting.partition("=")[0].strip() == "sites" for setting in settings):
        raise Failure("--placement and --set sites=... say the same thing; give one of them.", 2)
    return [*settings, f"sites={','.join(placements[placement])}"]


def sized(experiment: Any, quick: bool, full: bool) -> Mapping[str, Any]:
    """The fields that a smaller or a larger version changes."""
    if quick and full:
        raise Failure("--quick and --full ask for a smaller and a larger version; give one of them.", 2)
    if full and not experiment.full:
        raise Failure(f"--full: {experiment.name} has no larger version than its default; run it without.", 2)
    return experiment.quick if quick else experiment.full if full else {}


def requested_config(experiment: Any, file: Path | None, settings: Sequence[str], size: Mapping[str, Any]) -> Any:
    """The configuration asked for; each source is checked by itself, so that the message can name it."""
    stored = _read_config(file) if file else {}
    if file:
        parse_config(experiment.config, stored, str(file))
    where = "--set" if settings else str(file) if file else experiment.name
    merged = {**stored, **size}
    for key, value in parse_settings(experiment.config, settings).items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if nested else value
    return parse_config(experiment.config, merged, where)


def _read_config(file: Path) -> dict[str, Any]:
    readers: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads}
    if file.suffix not in readers:
        raise Failure(f"--config: {file} ends in neither .toml nor .json; give it the ending of what it holds.", 2)
    try:
        found = readers[file.suffix](file.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Failure(f"--config: {file} cannot be read ({reason}); name a file that can.", 2) from error
    except ValueError as error:
        raise Failure(f"--config: {file} is not valid {file.suffix[1:].upper()}: {error}.", 2) from error
    if not isinstance(found, dict):
        raise Failure(f"--config: {file} holds no table of keys; write it as {{key: value, ...}}.", 2)
    return found


def completed(experiment: Any, config: Any, root: Path, fresh: bool, cache: bool = True) -> tuple[store.Run, Result]:
    """Compute, resume or read, and say on standard error which; what is compiled for it is kept if `cache`."""
    asked = config_as_dict(config)
    if fresh:
        store.fresh(root, experiment.name, asked)
    now = store.provenance(**_device())
    opened = store.open_run(root, experiment.name, asked, now)
    status = store.status(opened)
    told = {
        "done": f"{opened.folder} was run before ({opened.record['created'][:19]} UTC) and is shown again; "
        "--fresh runs it anew.",
        "partial": f"resuming {opened.folder}.",
        "new": f"running {experiment.name} in {opened.folder}; if interrupted, the same command resumes it.",
    }
    terminal.say(told[status])
    _compare_versions(opened.record["provenance"].get("versions", {}), now["versions"], status)
    compiling = contextlib.nullcontext() if status == "done" else programs_kept(root, cache)
    try:
        # Whatever an experiment may print must not spoil the one object on standard output.
        with compiling, terminal.ProgressLine() as progress, contextlib.redirect_stdout(sys.stderr):
            compute = partial(experiment.run, config, progress=progress)
            return opened, store.complete(opened, lambda journal: compute(journal=journal))
    except KeyboardInterrupt as error:
        raise Failure(f"interrupted; run the same command again to resume {opened.folder}.", 130) from error
    except ConfigError:
        if status == "new":  # a wrong request leaves nothing behind
            store.fresh(root, experiment.name, asked)
        raise
    except store.RunError:
        raise
    except Exception as error:
        raise Failure(_failed(experiment.name, opened.folder, error), 1) from error


def _device() -> dict[str, Any]:
    """What the store cannot know without JAX."""
    try:
        import jax

        devices = jax.devices()
    except Exception as error:
        raise Failure(
            f"JAX finds no device: {terminal.first_line(error)}; check JAX_PLATFORMS and the installation.", 1
        ) from error
    return {
        "device": f"{devices[0].platform} {devices[0].device_kind} x {len(devices)}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax_enable_x64": bool(jax.config.read("jax_enable_x64")),
    }


def _compare_versions(before: Mapping[str, Any], now: Mapping[str, Any], status: str) -> None:
    changed = [f"{name} {before[name]} (now {now[name]})" for name in now if name in before and before[name] != now[name]]
    if changed:
        verb = "was computed" if status == "done" else "was begun"
        terminal.say(f"note: this run {verb} with {', '.join(changed)}; --fresh runs it with what is installed now.")


def _failed(name: str, folder: Path, error: Exception) -> str:
    """The sentence for a failed run; the traceback, which is not for everyone, is kept beside the data."""
    kept = ""
    with contextlib.suppress(store.RunError):
        text = "".join(traceback.format_exception(error))
        store.write_atomically(folder / "failure.txt", lambda file: file.write(text.encode()))
        kept = f" (traceback in {folder / 'failure.txt'})"
    return (
        f"{name} failed: {terminal.first_line(error)}{kept}; what was finished is kept, "
        "and the same command goes on from there."
    )


def draw(figures: Mapping[str, Callable[[Result], Any]], found: Result, folder: Path) -> Path | None:
    """Save the first figure in the run folder once; a picture that fails must not cost the result."""
    path = folder / "figure.png"
    if not figures or path.exists():
        return path if path.exists() else None
    try:
        drawn, buffer = next(iter(figures.values()))(found), io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
        import_module("matplotlib.pyplot").close(drawn)
        store.write_atomically(path, lambda file: file.write(buffer.getvalue()))
    except Exception as error:
        terminal.say(
            f"note: the figure could not be saved ({terminal.first_line(error)}); the result is kept, "
            "and the same command tries again."
        )
        return None
    return path


def svgs(figures: Mapping[str, Callable[[Result], Any]], found: Result) -> dict[str, str]:
    """Every figure as an SVG element, by caption; one that fails is left out, and said so."""
    drawing, drawn = import_module("precisionlab.runs.drawing"), {}
    for number, (caption, figure) in enumerate(figures.items(), 1):
        try:
            drawn[caption] = drawing.inline_svg(figure(found), f"figure{number}", caption)
        except Exception as error:
            terminal.say(f'note: the figure "{caption}" could not be drawn ({terminal.first_line(error)}); it is left out.')
    return drawn
