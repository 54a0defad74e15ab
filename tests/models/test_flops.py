"""Counted operations against the formula of a vision transformer."""

import pytest
import torch

from siglightning.models import SaliencyMasking, TowerConfig, TwoTower, build_image_tower, with_saliency
from siglightning.models.flops import step_flops, tower_flops

WIDTH, DEPTH, PATCHES = 192, 12, 196  # of vit_tiny_patch16_224


def block_flops(tokens):
    """Twelve width x width matrices a token, and two products of all queries with all keys; times two."""
    return 2 * (12 * WIDTH**2 * tokens + 2 * tokens**2 * WIDTH)


def read_flops(tokens):
    """Keys of all tokens, the query of one, and its products with the keys."""
    return 2 * (WIDTH**2 * (tokens + 1) + tokens * WIDTH)


@pytest.fixture
def tower():
    with torch.device("meta"):
        return build_image_tower(TowerConfig("timm:vit_tiny_patch16_224")).eval()


@pytest.mark.parametrize("masking", [None, SaliencyMasking("random", 0.25), SaliencyMasking("attention", 0.5, 3)])
def test_flops_are_those_of_the_formula(tower, masking):
    flops = tower_flops(with_saliency(tower, masking), torch.zeros(2, 3, 224, 224, device="meta"))
    kept = 1 + (PATCHES if masking is None else masking.num_kept(PATCHES))
    embed = 2 * PATCHES * 16 * 16 * 3 * WIDTH
    expected = embed + DEPTH * block_flops(kept)
    if masking is not None and masking.layer is not None:
        expected += masking.layer * block_flops(1 + PATCHES) + read_flops(1 + PATCHES)
    assert flops.forward == 2 * expected
    assert not tower.training
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_a_step_costs_three_forward_passes_and_masking_saves_where_it_should(tower):
    image = torch.zeros(2, 3, 224, 224, device="meta")
    plain = tower_flops(tower, image)
    assert plain.step == pytest.approx(3 * plain.forward, rel=0.02)  # fused attention computes its logits again
    ratios = {}
    for masking in (SaliencyMasking("random"), SaliencyMasking("attention", layer=0), SaliencyMasking("gradient")):
        ratios[masking.selector] = tower_flops(with_saliency(tower, masking), image).step / plain.step
    assert ratios["random"] < ratios["attention"] < 0.52
    assert ratios["gradient"] > 1  # a forward and most of a backward pass more than it saves


@pytest.mark.parametrize("selector", ["attention", "gradient"])
def test_counting_leaves_gradients_and_modes_alone(make_vit, selector):
    """With an attention pooling, whose query is a parameter that goes into a module as it is."""
    tower = with_saliency(make_vit("timm map"), SaliencyMasking(selector))
    image = torch.randn(2, 3, 32, 32)
    tower(image).sum().backward()
    before = [parameter.grad.clone() for parameter in tower.parameters()]
    assert tower_flops(tower, image).step > 0
    assert not tower.training
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(tower.parameters(), before, strict=True))


def test_a_frozen_tower_takes_no_step(tower):
    tower.requires_grad_(False)
    flops = tower_flops(tower, torch.zeros(1, 3, 224, 224, device="meta"))
    assert flops.step == flops.forward


BASE, TOKENS = 768, 16  # width of B; tokens a caption


def batch_of(pairs, size, **more):
    """Numbers are not looked at."""
    empty = {"device": "meta"}
    image = torch.empty(pairs, 3, size, size, dtype=torch.uint8, **empty)
    return {"image": image, "text": torch.empty(pairs, TOKENS, dtype=torch.int64, **empty), "id": ["a"] * pairs} | more


def base(**options):
    """ViT-B/16 with attention pooling at 224, and text B, as in `recipe/siglip_b16_224`."""
    text = {"width": BASE, "depth": 12, "heads": 12, "pooling": "last", "mask_padding": False}
    with torch.device("meta"):
        return TwoTower(
            "timm:vit_base_patch16_siglip_224",
            TowerConfig("local:text_transformer", kwargs=text),
            image_size=224,
            context_length=TOKENS,
            tokenizer="clip",
            **options,
        )


def transformer(tokens, depth=12):
    """Of one sample: twelve width x width matrices a token, two products of queries and keys; times two."""
    return 2 * depth * (12 * BASE**2 * tokens + 2 * tokens**2 * BASE)


IMAGE = transformer(PATCHES) + 2 * PATCHES * 16 * 16 * 3 * BASE
POOLING = 2 * (
    2 * BASE**2 * PATCHES + 10 * BASE**2 + 2 * PATCHES * BASE
)  # keys, values; one query, its MLP of 4 x width
LEARNT = 3  # forward pass, gradients of inputs and of weights


def products(pairs, count):
    return count * 2 * pairs**2 * BASE


def test_a_step_of_base_towers_is_three_forward_passes_and_the_three_products_of_the_loss():
    """By hand, for 64 pairs on each of two processes, whose captions are all compared with."""
    found = step_flops(base(), batch_of(64, 224), world_size=2)
    forward = IMAGE + POOLING + transformer(TOKENS)
    assert found == pytest.approx(64 * LEARNT * forward + 2 * products(64, 3), rel=0.01)
    assert 3 * 64 * IMAGE < found < 1.15 * 3 * 64 * IMAGE


def test_a_frozen_tower_counts_forward_only_and_stored_features_not_at_all():
    network = base(freeze_image=True, embed_dim=BASE)
    text, projection = transformer(TOKENS), 2 * BASE**2
    expected = 8 * (IMAGE + POOLING + LEARNT * (text + 2 * projection)) + products(8, 3)
    assert step_flops(network, batch_of(8, 224)) == pytest.approx(expected, rel=0.01)
    locked = base(freeze_image=True)
    assert step_flops(locked, batch_of(8, 224)) - step_flops(locked, batch_of(8, 224, image_embed=None)) == (
        pytest.approx(8 * (IMAGE + POOLING), rel=0.01)
    )
    captions = step_flops(locked, batch_of(8, 224, image_embed=None))
    assert captions == pytest.approx(8 * LEARNT * text + products(8, 2), rel=0.01)


def test_slices_and_compilation_are_the_same_work_and_nothing_changes():
    torch.manual_seed(0)
    vit = TowerConfig("timm:vit_tiny_patch16_224", kwargs={"embed_dim": 16, "depth": 2, "num_heads": 2})
    text = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2, "dropout": 0.1})
    options = {"embed_dim": 16, "image_size": 32, "context_length": TOKENS}
    plain = TwoTower(vit, text, **options)
    sliced = TwoTower(vit, text, micro_batch_size=2, compile_towers=True, **options).eval()
    sliced.compile_for_training()
    before = {name: value.clone() for name, value in sliced.state_dict().items()}
    generator = torch.get_rng_state()
    assert step_flops(sliced, batch_of(4, 32)) == step_flops(plain, batch_of(4, 32)) > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in sliced.state_dict().items())
    assert not any(module.training for module in sliced.modules())
    assert all(p.grad is None and p.device.type == "cpu" for p in sliced.parameters())


def test_of_a_tower_trained_in_part_the_gradients_that_are_needed():
    network = base(freeze_text=True)
    whole = step_flops(network, batch_of(8, 224))
    for name, parameter in network.image_tower.named_parameters():
        parameter.requires_grad_("blocks.11" in name)
    last = 8 * 2 * transformer(PATCHES, depth=1)  # both gradients of one block, and of inputs through the pooling
    forward = 8 * (IMAGE + POOLING + transformer(TOKENS)) + products(8, 2)
    assert forward + last < step_flops(network, batch_of(8, 224)) < forward + 1.3 * last < whole / 2
