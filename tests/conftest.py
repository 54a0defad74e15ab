"""Shared set-up: the references are importable, and torch uses the two cores that a test may have."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(2)
