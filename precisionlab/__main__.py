"""`python -m precisionlab` is the command line."""

from precisionlab.cli import main

if __name__ == "__main__":
    main()
