"""`python -m mtpref`."""

import sys

from mtpref.front.cli import main

if __name__ == "__main__":
    sys.exit(main())
