"""`python -m dataflex`."""

import sys

from dataflex.cli import main

if __name__ == "__main__":
    sys.exit(main())
