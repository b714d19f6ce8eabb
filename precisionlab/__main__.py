"""`python -m precisionlab` and the `precisionlab` command, with a sentence where the command line is not installed."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, which needs the `lab` extra."""
    try:
        from precisionlab.cli.main import main as run
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("precisionlab"):
            raise
        print(
            f"precisionlab: the command line needs {missing.name}, which is not installed; "
            "run pip install 'precisionlab[lab]'.",
            file=sys.stderr,
        )
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()
