"""Runs of processes are started as the tests of faults start them, on the small data sets of the recipes' tests."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("faults", "recipes")]
