"""Shared set-up: the references are importable, and each test process keeps to one core."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # two test processes share two cores
