"""One of two hosts: times a step of the loss, its compute alone and its transfers alone, over whatever lies between.

python timed_steps.py RANK ADDRESS_OF_RANK_0
"""

import json
import statistics
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from siglightning.distributed.ring import Ring
from siglightning.losses import sigmoid_loss

PAIRS, DIM, ROUNDS = 6144, 16, 7


def main(rank: int, address: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://{address}:29513", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    group = dist.group.WORLD
    x, y = (torch.nn.functional.normalize(torch.randn(PAIRS, DIM), dim=1).requires_grad_() for _ in range(2))
    scale, bias = torch.zeros(1), torch.zeros(1)
    both = torch.cat([y, y]).detach()

    def step():
        sigmoid_loss(x, y, scale, bias, group=group)

    def compute():
        """The same tiles, without anybody to talk to."""
        for texts in both.split(PAIRS):
            sigmoid_loss(x, texts.requires_grad_(), scale, bias)

    def transfers():
        """The same messages one after the other: texts once, gradients twice."""
        ring, block = Ring.of(group), x.detach()
        for _ in range(3):
            ring.shift((block,), (torch.empty_like(block),)).wait()

    work = {"step": step, "compute": compute, "transfers": transfers}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, run in work.items():
            dist.barrier()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print(json.dumps({name: statistics.median(values[1:]) for name, values in seconds.items()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
