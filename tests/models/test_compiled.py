"""Compiled towers: numbers, names and gradients of plain ones, and a bounded number of graphs."""

import copy
import json
import pickle

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from siglightning.models import ImageEncoder, TowerConfig, TwoTower
from siglightning.models.compiled import require_compiler
from siglightning.models.lora import Lora
from siglightning.models.saliency import SaliencyMasking

CPU = torch.device("cpu")
VIT = TowerConfig(
    "timm:vit_base_patch16_siglip_224", kwargs={"patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
)
TEXT = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2})
CONV = TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1], "groups": 4})
OPEN_CLIP = {
    "embed_dim": 32,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def _from_nothing():
    try:
        require_compiler(CPU)
    except ValueError as error:
        pytest.skip(str(error))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def encoder(**options):
    torch.manual_seed(0)
    return ImageEncoder(VIT, image_size=32, **options)


def two_tower(image=CONV, text=TEXT, **options):
    torch.manual_seed(0)
    return TwoTower(image, text, **{"image_size": 32, "context_length": 8, "embed_dim": 16} | options)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return image, torch.randint(1, 400, (8, 8), generator=generator)


def step(network, batch, autocast=False):
    """Outputs of a training batch and gradients of a sum whose weights differ."""
    network.train().zero_grad()
    network.seed_slices(0, 0, 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = torch.cat(network(*batch)) if isinstance(network, TwoTower) else network.encode_features(batch[0])
    (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return out.detach().float(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def assert_same(plain, compiled, rel):
    """``rel`` of the largest number of each tensor: small ones are differences of such."""
    assert plain[1].keys() == compiled[1].keys()
    pairs = {"outputs": (plain[0], compiled[0])} | {name: (g, compiled[1][name]) for name, g in plain[1].items()}
    for name, (expected, found) in pairs.items():
        torch.testing.assert_close(found, expected, rtol=0, atol=rel * expected.abs().max().item(), msg=name)


def num_graphs():
    return counters["stats"]["unique_graphs"]


def test_a_compiled_tower_is_the_plain_one_and_is_compiled_three_times_at_most(batch):
    """In slices that are computed twice, then with evaluations of any size."""
    plain, compiled = encoder(micro_batch_size=4), encoder(micro_batch_size=4, compile_towers=True)
    names = list(plain.state_dict())
    compiled.compile_for_training()
    assert list(compiled.state_dict()) == names
    assert num_graphs() == 0, "nothing is compiled before it is called"
    # fp32: kernels add in another order, some 5 roundings of 6e-8 in a row
    assert_same(step(plain, batch), step(compiled, batch), rel=1e-5)
    assert num_graphs() == 1, "two slices, recomputed, are one graph"
    for network in (plain, compiled):
        network.eval()
    for size in (3, 8, 5, 2, 7):
        with torch.inference_mode():
            found, expected = (network.encode_features(batch[0][:size]) for network in (compiled, plain))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    step(compiled, batch)
    assert num_graphs() <= 3, "evaluation has one graph for whatever size, and one at most for its first"
    assert counters["graph_break"] == {}

    for copied in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled.image_tower))):
        assert [module for module in copied.modules() if module._compiled_call_impl is not None] == []
    first = compiled.image_tower._compiled_call_impl
    compiled.compile_for_training()
    assert compiled.image_tower._compiled_call_impl is first, "a second training finds what the first has compiled"


def test_false_compiles_nothing(batch):
    network = encoder()
    network.compile_for_training()
    step(network, batch)
    assert num_graphs() == 0


@pytest.mark.parametrize("name", ["CXX", "PATH"])
def test_without_a_compiler_one_sentence_says_what_to_do(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, str(tmp_path / "none"))
    if name == "PATH":
        monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"got no compiler .*Install one .*`compile_towers: false`"):
        encoder(compile_towers=True).check_compile(CPU)
    encoder().check_compile(CPU)


def test_without_pythons_headers_likewise(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"got no Python.h\. .*python3-dev"):
        require_compiler(CPU)


def open_clip_file(folder):
    (folder / "tiny-compiled.json").write_text(json.dumps(OPEN_CLIP))
    return f"open_clip:{folder / 'tiny-compiled.json'}"


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_two_towers_with_and_without_slices(batch, micro_batch_size, autocast):
    plain, compiled = (two_tower(VIT, micro_batch_size=micro_batch_size, compile_towers=how) for how in (False, True))
    compiled.compile_for_training()
    # bf16 has steps of 2^-8 and is rounded some times in a row; compiled kernels round less often
    assert_same(step(plain, batch, autocast), step(compiled, batch, autocast), rel=0.05 if autocast else 1e-5)
    assert num_graphs() == 2
    compiled.eval()
    known = [graphs_of_evaluations(compiled, batch, sizes) for sizes in ((8, 5, 3, 1), (7, 6, 2, 8))]
    assert known[0] == known[1] <= 10, "training; evaluation's first size, any size, full slices, one sample; twice"
    step(compiled, batch, autocast)
    assert num_graphs() == known[1]


def graphs_of_evaluations(network, batch, sizes):
    for size in sizes:
        with torch.inference_mode():
            network(*(part[:size] for part in batch))
    return num_graphs()


@pytest.mark.slow
def test_frozen_towers(batch):
    plain, compiled = (two_tower(freeze_image=True, compile_towers=how) for how in (False, True))
    compiled.compile_for_training()
    assert_same(step(plain, batch), step(compiled, batch), rel=1e-5)
    assert num_graphs() == 2


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["attention", "gradient"])
def test_saliency_selects_outside_of_the_graphs(batch, selector):
    plain, compiled = (
        encoder(saliency=SaliencyMasking(selector), micro_batch_size=4, compile_towers=how) for how in (False, True)
    )
    compiled.compile_for_training()
    assert_same(step(plain, batch), step(compiled, batch), rel=1e-5)
    before = num_graphs()
    step(compiled, batch)
    assert num_graphs() == before <= 6


@pytest.mark.slow
def test_adapters(batch):
    plain, compiled = (encoder(lora=Lora(rank=2), compile_towers=how) for how in (False, True))
    compiled.compile_for_training()
    assert_same(step(plain, batch), step(compiled, batch), rel=1e-5)
    assert num_graphs() == 1


@pytest.mark.slow
def test_towers_of_open_clip(batch, tmp_path):
    name = open_clip_file(tmp_path)
    options = {"embed_dim": None, "tokenizer": "clip"}
    plain, compiled = (two_tower(name, name, compile_towers=how, **options) for how in (False, True))
    compiled.compile_for_training()
    assert_same(step(plain, batch), step(compiled, batch), rel=1e-5)
    assert num_graphs() == 2


@pytest.mark.slow
def test_recomputation_draws_the_masks_of_the_first_pass(batch):
    """Gradients of a recomputed slice equal those of the same slice kept in memory."""
    dropping = TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1], "groups": 4, "dropout": 0.3})
    found = []
    for micro_batch_size in (8, None):
        torch.manual_seed(0)
        options = {"image_size": 32, "compile_towers": True, "micro_batch_size": micro_batch_size}
        network = ImageEncoder(dropping, **options)
        for parameter in network.parameters():  # the residual branches start at zero; let them take part
            torch.nn.init.normal_(parameter, std=0.1)
        network.compile_for_training()
        found.append(step(network, batch))
    assert_same(*found, rel=1e-5)
    network.eval()
    with torch.no_grad():
        assert (network.encode_features(batch[0]) - found[0][0]).abs().max() > 1e-3, "something was dropped"
