"""The options that several verbs share, and what a file named by one must be."""

import os
from pathlib import Path

import click

from precisionlab.cli.terminal import Failure

__all__ = ["JSON", "PLOT", "RUNS", "check_writable"]

RUNS = click.option(
    "--runs",
    "root",
    type=click.Path(path_type=Path),
    envvar="PRECISIONLAB_RUNS",
    default="runs",
    show_default=True,
    help="Folder that holds all runs; also PRECISIONLAB_RUNS.",
)
PLOT = click.option("--plot", type=click.Path(path_type=Path), help="Draw it, too: a .png, .svg or .pdf file.")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output; null is NaN or inf.")


def check_writable(option: str, path: Path) -> None:
    """Refuse a file that could not be saved, before anything is computed for it."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.absolute().parent}"
        raise Failure(f"{option}: {path} cannot be written ({why}); name a file in a folder that exists.", 2)
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise Failure(f"{option}: {path} cannot be written (permission denied); name a file that can.", 2)
