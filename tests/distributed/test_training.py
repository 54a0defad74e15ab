"""The real command line on two and on three processes: the weights of one process on the whole batch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

from siglightning.cli import main
from siglightning.distributed.local import run_ranks

STEPS = 4
SMALL = f"""
model:
  init_args:
    network:
      init_args:
        image_tower: {{name: "local:conv", kwargs: {{width: 8, depths: [1, 1], dropout: DROPOUT}}}}
        text_tower: {{name: "local:text_transformer", kwargs: {{width: 16, depth: 1, heads: 2, dropout: DROPOUT}}}}
        embed_dim: 16
        micro_batch_size: MICRO
        init_bias: BIAS
    optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.005, weight_decay: 0.0}}}}
data:
  init_args: {{global_batch_size: 12}}
trainer:
  max_steps: {STEPS}
  limit_val_batches: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  logger: false
  gradient_clip_val: null
"""
PLAIN = {"MICRO": "null", "DROPOUT": "0.0", "BIAS": "-6.0"}
SLICED = PLAIN | {"MICRO": "2", "DROPOUT": "0.3"}
RING, BY_CLASS = "--trainer.strategy=ring_ddp", "--trainer.strategy=siglightning.distributed.RingDDPStrategy"
STATIC, UNUSED = "--trainer.strategy.static_graph=true", "--trainer.strategy.find_unused_parameters=true"
# name -> precision, what replaces words of SMALL, flags where there are several processes, flags always
VARIANTS = {
    "plain": ("64-true", PLAIN, [RING], []),
    "ddp": ("64-true", PLAIN, ["--trainer.strategy=ddp"], []),
    "gather": ("64-true", PLAIN, [RING, "--model.init_args.comm=gather"], []),
    "static": ("64-true", PLAIN, [BY_CLASS, STATIC], []),
    "unused": ("64-true", PLAIN, [BY_CLASS, UNUSED], []),
    "sliced": ("64-true", SLICED, [RING], []),
    "sliced-unused": ("64-true", SLICED, [BY_CLASS, UNUSED], []),
    "sliced-static": ("64-true", SLICED, [BY_CLASS, STATIC], []),
    "softmax": ("64-true", PLAIN | {"BIAS": "null"}, [RING], ["--model.init_args.loss=softmax"]),
    "random": ("64-true", PLAIN, [RING], ["--model.negatives.kind=random", "--model.negatives.ratio=3"]),
    "plain-fp32": ("32-true", PLAIN, [RING], []),
    "sliced-fp32": ("32-true", SLICED, [RING], []),
    "plain-bf16": ("bf16-mixed", PLAIN, [RING], []),
}
# With two processes left equals right: what differs from three is only that, so a few are enough there.
OF_TWO = ("plain", "sliced", "random", "plain-bf16")
# Largest difference of a weight after four steps. fp64: a few roundings of weights of order 1. fp32: the same, of
# gradients that are sums of terms up to 100 times as large.
TOLERANCE = {"64-true": 1e-12, "32-true": 1e-6}


def train(folder, name, world_size):
    precision, words, for_many, for_all = VARIANTS[name]
    config = SMALL
    for word, value in words.items():
        config = config.replace(word, value)
    path = Path(folder, f"{name}-{world_size}.yaml")
    path.write_text(config)
    run_dir = Path(folder, f"run-{name}-{world_size}")
    flags = [f"--trainer.devices={world_size}", *(for_many if world_size > 1 else []), *for_all]
    flags += ["--trainer.precision", precision, "--run_dir", str(run_dir), "--test_after_fit=false"]
    code = main(["fit", "--config", "quickstart", "--config", str(path), *flags])
    assert code == 0
    return torch.load(run_dir / "checkpoints" / f"step-{STEPS:08d}.ckpt", weights_only=True)["state_dict"]


def train_on_this_rank(folder):
    """All variants, one after the other, as a launcher's process: it finds its rank in the environment."""
    rank = dist.get_rank()
    rank_zero_only.rank = rank  # read by Lightning when it was imported, before this process knew
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    world_size = dist.get_world_size()
    return {name: train(folder, name, world_size) for name in (OF_TWO if world_size == 2 else VARIANTS)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {1: {name: train(folder, name, 1) for name in VARIANTS}} | {
        world_size: run_ranks(world_size, train_on_this_rank, str(folder))[0] for world_size in (2, 3)
    }


@pytest.mark.parametrize(
    ("world_size", "name"),
    [(size, name) for size, names in ((2, OF_TWO), (3, VARIANTS)) for name in names if name != "plain-bf16"],
)
def test_weights_are_those_of_one_process(weights, world_size, name):
    ours, one = weights[world_size][name], weights[1][name]
    assert ours.keys() == one.keys()
    worst = max(one, key=lambda key: float((ours[key] - one[key]).abs().max()))
    torch.testing.assert_close(ours[worst], one[worst], atol=TOLERANCE[VARIANTS[name][0]], rtol=0)


@pytest.mark.parametrize("world_size", [2, 3])
def test_bf16_on_several_processes_is_as_near_as_bf16_on_one(weights, world_size):
    """Each share's weight gradients are rounded to 8 bits before they are averaged; one process rounds the sum.

    So the two differ by roundings that each makes, and by no more than bf16 differs from fp64 on one process.
    """
    exact, one, ours = (
        joined(weights[size][name]) for size, name in ((1, "plain"), (1, "plain-bf16"), (world_size, "plain-bf16"))
    )
    own_error = (one - exact).norm()
    assert 0 < (ours - one).norm() < own_error
    assert (ours - exact).norm() < 1.2 * own_error


def test_the_variants_train_something(weights):
    """Weights that do not move, or not differently, would agree, too."""
    plain, sliced, softmax = (
        weights[1][name]["network.image_projection.weight"] for name in ("plain", "sliced", "softmax")
    )
    assert (sliced - plain).abs().max() > 1e-4
    assert (softmax - plain).abs().max() > 1e-4


def joined(state):
    """All weights in one fp64 vector."""
    return torch.cat([value.double().flatten() for value in state.values()])
