"""`python -m lowhanging` is the command `lowhanging`: for where scripts are not on the path."""

import sys

from lowhanging.reproduce.cli import main

if __name__ == "__main__":
    sys.exit(main())
