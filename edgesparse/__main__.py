"""`python -m edgesparse`."""

import sys

from edgesparse.cli import main

if __name__ == "__main__":
    sys.exit(main())
