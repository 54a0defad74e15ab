"""Compiled towers on two processes under the ring: the weights of a plain run on one."""

import os

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from test_training import PLAIN, RING, SLICED, VARIANTS, train

from siglightning.distributed.local import run_ranks
from siglightning.models.compiled import require_compiler

COMPILED = "--model.init_args.network.init_args.compile_towers=true"
NO_DROPOUT = SLICED | {"DROPOUT": "0.0"}  # compiled dropout draws other masks
OURS = {
    "compiled": ("64-true", PLAIN, [RING, COMPILED], []),
    "compiled-sliced": ("64-true", NO_DROPOUT, [RING, COMPILED], []),
}


def train_on_this_rank(folder):
    rank = dist.get_rank()
    rank_zero_only.rank = rank  # read by Lightning when it was imported, before this process knew
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    VARIANTS.update(OURS)
    return {name: train(folder, name, 2) for name in OURS}


@pytest.mark.slow
def test_two_processes_with_compiled_towers_are_a_plain_one(tmp_path, monkeypatch):
    require_compiler(torch.device("cpu"))
    for name, variant in OURS.items():
        monkeypatch.setitem(VARIANTS, name, variant)
    ranks = run_ranks(2, train_on_this_rank, str(tmp_path), timeout_s=300.0)
    for name in OURS:
        one = train(str(tmp_path), name, 1)  # its flags for several processes left out: not compiled
        assert [ranks[0][name].keys(), ranks[1][name].keys()] == [one.keys()] * 2
        for key, value in one.items():
            # fp64: some roundings of weights of order 1
            torch.testing.assert_close(ranks[0][name][key], value, atol=1e-11, rtol=0)
