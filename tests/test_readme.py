"""What the README says is run: its plain loop on three ranks, its drop-in, and no number is left open."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
PAIRS, STEPS = 4, 3

MODEL = f"""
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(6, 5), torch.nn.Linear(6, 5)
        self.log_scale = torch.nn.Parameter(torch.tensor([2.0]))
        self.bias = torch.nn.Parameter(torch.tensor([-4.0]))

    def forward(self, images, texts):
        embeds = self.image(images), self.text(texts)
        return tuple(torch.nn.functional.normalize(value, dim=1) for value in embeds)

def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range({STEPS}):
        yield torch.randn(2, {3 * PAIRS}, 6, generator=generator).double()

network = Network().double()
"""


def block_with(text):
    (block,) = (block for block in BLOCKS if text in block)
    return block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_number_is_left_open(page):
    assert not re.search(r"@[A-Z]+@|TODO|TBD", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        other = (page.parent / name) if name else page
        assert other.exists(), target
        headings = re.findall(r"^#+ (.+)$", other.read_text(), flags=re.MULTILINE) if other.suffix == ".md" else []
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]  # GitHub's rule
        assert not anchor or anchor in anchors, target


def test_the_plain_loop_is_ten_lines_and_trains_as_one_process(tmp_path):
    loop = block_with("DistributedDataParallel")
    start = loop.index("dist.init_process_group")
    assert len(loop[start:].strip().splitlines()) <= 10
    rank_rows = f"slice({PAIRS} * rank, {PAIRS} * (rank + 1))"
    loader = f"import os; rank = int(os.environ['RANK']); loader = [b[:, {rank_rows}] for b in batches()]\n"
    save = f"torch.save(network.state_dict(), f'{tmp_path}/{{rank}}.pt'); dist.destroy_process_group()\n"
    (tmp_path / "train.py").write_text(MODEL + loader + loop + save)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    run = subprocess.run(
        [*launch, str(tmp_path / "train.py")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    wanted = one_process()
    for rank in range(3):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in wanted.items():
            torch.testing.assert_close(state[name], value, atol=1e-12, rtol=0)  # fp64


def one_process():
    """The same steps on the whole batch, with the loss as the paper prints it."""
    names = {}
    exec(MODEL, names)
    network = names["network"]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for images, texts in names["batches"]():
        x, y = network(images, texts)
        logits = network.log_scale.exp() * x @ y.T + network.bias
        loss = -functional.logsigmoid((2 * torch.eye(len(x)) - 1) * logits).sum() / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all((value - before[name]).abs().max() > 1e-4 for name, value in network.state_dict().items())
    return network.state_dict()


def test_the_drop_in_takes_what_open_clips_models_give():
    x, y = (functional.normalize(torch.randn(4, 6), dim=1) for _ in range(2))
    model_out = {"image_features": x, "text_features": y, "logit_scale": torch.ones(1), "logit_bias": torch.zeros(1)}
    names = {"model_out": model_out}
    exec(block_with("model_out"), names)
    expected = -functional.logsigmoid((2 * torch.eye(4) - 1) * (x @ y.T)).sum() / 4
    torch.testing.assert_close(names["losses"]["contrastive_loss"], expected)
