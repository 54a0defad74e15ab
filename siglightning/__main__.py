"""``python -m siglightning``: the same as the command ``siglightning``."""

import sys

from siglightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
