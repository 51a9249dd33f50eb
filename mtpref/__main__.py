"""`python -m mtpref`."""

import sys

from mtpref.cli import main

if __name__ == "__main__":
    sys.exit(main())
