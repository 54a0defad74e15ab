"""Towers of every library, small and at random, written for another library and read back by it."""

import json
import zlib
from dataclasses import replace

import open_clip
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from siglightning.batch import Resizing
from siglightning.data import PictogramArchive
from siglightning.data.transforms import resize
from siglightning.models import SaliencyMasking, TowerConfig, TwoTower, load_two_tower
from siglightning.models.export import FORMATS, UnheldError, onnx_format, refusal
from siglightning.models.export.pictures import squares
from siglightning.models.lora import Lora, merge_adapters

CLOSE = 1e-5  # fp32 sums in another order differ by some 1e-7
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SIGLIP_IMAGE = TowerConfig("timm:vit_base_patch16_siglip_224", kwargs=VIT)
SIGLIP_TEXT = TowerConfig(
    "local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2, "pooling": "last", "mask_padding": False}
)
BAG = TowerConfig("local:text_transformer", kwargs={"width": 16, "heads": 2})
MEAN = {"width": 16, "heads": 2, "depth": 0, "bottleneck": 8, "norm_bias": False}  # the quickstart's, smaller
CAPTIONS = ["a cat", "two dogs on a very long and winding road that goes on and on", "", "wow!!! a bird"]


def words(folder):
    """A small vocabulary of transformers, padded with a token of its own."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "cat", "two", "dogs", "on", "very", "long", "road", "bird"]
    fast = FastTokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    fast.pre_tokenizer = Whitespace()
    fast.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    given = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **given).save_pretrained(folder)


def siglip(folder):
    text = SMALL | {"vocab_size": 49408, "max_position_embeddings": 12}
    vision = SMALL | {"image_size": 32, "patch_size": 8}
    transformers.SiglipConfig(text_config=text, vision_config=vision).save_pretrained(folder)
    return TowerConfig(f"hf:{folder}")


def clip(folder):
    text = SMALL | {"vocab_size": 49408, "max_position_embeddings": 12, "eos_token_id": 49407}
    vision = SMALL | {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    config.save_pretrained(folder)
    return TowerConfig(f"hf:{folder}")


def bert(folder):
    transformers.BertConfig(vocab_size=13, max_position_embeddings=16, **SMALL).save_pretrained(folder)
    words(folder)
    return TowerConfig(f"hf:{folder}")


def open_clip_file(folder, **text):
    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
    text = {"context_length": 12, "width": 16, "heads": 2, "layers": 1} | text
    content = json.dumps({"embed_dim": 12, "custom_text": True, "vision_cfg": vision, "text_cfg": text})
    path = folder / f"small_{zlib.crc32(content.encode())}.json"  # open_clip knows a model by its file's name
    folder.mkdir()
    path.write_text(content)
    return TowerConfig(f"open_clip:{path}")


def open_clip_siglip(folder):
    """As ViT-B-16-SigLIP: timm's vision transformer inside, which is pooled by attention."""
    folder.mkdir()
    towers = TwoTower(SIGLIP_IMAGE, open_clip_file(folder / "text", **SIGLIP_LIKE), context_length=12, tokenizer="clip")
    FORMATS["open_clip"].write(towers, folder, {})
    return TowerConfig(f"open_clip:local-dir:{folder}")


SIGLIP_LIKE = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
CASES = {
    "siglip of transformers": (lambda at: (siglip(at), siglip(at)), "transformers", {"tokenizer": "clip"}),
    "clip of transformers": (lambda at: (clip(at), clip(at)), "transformers", {"tokenizer": "clip", "init_bias": None}),
    "siglip of open_clip": (lambda at: (open_clip_siglip(at),) * 2, "open_clip", {"tokenizer": "clip"}),
    "siglip of open_clip in transformers": (
        lambda at: (open_clip_siglip(at),) * 2,
        "transformers",
        {"tokenizer": "clip"},
    ),
    "text of open_clip": (
        lambda at: (SIGLIP_IMAGE, open_clip_file(at, **SIGLIP_LIKE)),
        "transformers",
        {"tokenizer": "clip", "image_size": 32},
    ),
    "clip of open_clip": (lambda at: (open_clip_file(at), open_clip_file(at.with_name("b"))), "open_clip", {}),
    "siglip text of open_clip": (
        lambda at: (SIGLIP_IMAGE, open_clip_file(at, **SIGLIP_LIKE)),
        "open_clip",
        {"tokenizer": "clip", "image_size": 32},
    ),
    "class token": (
        lambda _: (TowerConfig("timm:vit_tiny_patch16_224", kwargs=VIT), SIGLIP_TEXT),
        "open_clip",
        {"image_size": 32},
    ),
    "a last norm without a bias": (
        lambda _: (SIGLIP_IMAGE, TowerConfig(SIGLIP_TEXT.name, kwargs=SIGLIP_TEXT.kwargs | {"norm_bias": False})),
        "open_clip",
        {"image_size": 32},
    ),
    "a convolutional network of timm, projected": (
        lambda _: (TowerConfig("timm:test_convnext"), SIGLIP_TEXT),
        "open_clip",
        {"image_size": 32, "embed_dim": 12},
    ),
    "captions without case and punctuation": (
        lambda _: (SIGLIP_IMAGE, SIGLIP_TEXT),
        "transformers",
        {"image_size": 32, "canonicalize": True},
    ),
    "bert": (lambda at: (SIGLIP_IMAGE, bert(at)), "open_clip", {"image_size": 32, "embed_dim": 12}),
}
BERT_IN_ONNX = "bert in onnx"


def randomise(network):
    """Every weight something else than its start: zeros and ones would hide what is mixed up."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name not in ("log_scale", "bias"):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize("case", [*CASES, pytest.param(BERT_IN_ONNX, marks=pytest.mark.slow)])
def test_another_library_computes_the_same(tmp_path, case):
    towers, name, arguments = CASES[case] if case in CASES else (CASES["bert"][0], "onnx", {"image_size": 32})
    image, text = towers(tmp_path / "a")
    network = randomise(TwoTower(image, text, **{"context_length": 12} | arguments))
    assert refusal(network, name) is None
    (tmp_path / "out").mkdir()
    FORMATS[name].write(network, tmp_path / "out", {})
    if (tmp_path / "a").exists():
        (tmp_path / "a").rename(tmp_path / "gone")  # what was written is all that is needed
    theirs = FORMATS[name].reload(tmp_path / "out")
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    out = theirs.outputs(theirs.pixels(list(pictures)), theirs.tokens(CAPTIONS))
    with torch.no_grad():
        x, y = network(pictures, network.tokenizer(CAPTIONS))
    logits = network.log_scale.exp() * x @ y.T + (0 if network.bias is None else network.bias)
    assert (x - out.image).abs().max() < CLOSE
    assert (y - out.text).abs().max() < CLOSE
    assert (logits - out.logits).abs().max() < CLOSE


@pytest.mark.parametrize("groups", [1, 8])
def test_group_norms_go_to_onnx_as_exact_as_they_are(tmp_path, groups):
    """As the exporter writes them, onnxruntime's means are 3 to 4 times as far off where the variance is small."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    norm = torch.nn.GroupNorm(groups, 16)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x = 3 + 0.05 * torch.randn(5, 16, 24, 24, generator=torch.Generator().manual_seed(0))  # nearly white
    onnx_format._export(onnx_format._Embedder(norm, torch.nn.Flatten()), x[:2], ("x", "y"), tmp_path / "norm.onnx")
    assert "InstanceNormalization" not in {node.op_type for node in onnx.load(tmp_path / "norm.onnx").graph.node}
    session = onnxruntime.InferenceSession(tmp_path / "norm.onnx", providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0]).double()
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        exact, ours = unit(norm.double()(x.double()).flatten(1)), unit(norm.float()(x).flatten(1)).double()
    # Largest errors over rows; torch's own is the measure, and 1.5 leaves room for another order of the sums.
    assert (theirs - exact).norm(dim=1).max() < 1.5 * (ours - exact).norm(dim=1).max()


@pytest.mark.parametrize("crop", [None, 1.0, 0.875])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_files_tell_how_pictures_become_squares(tmp_path, crop, interpolation):
    """By transformers from the file, by Pillow and NumPy as ONNX's users would, and by ourselves who wrote it."""
    network = TwoTower(SIGLIP_IMAGE, SIGLIP_TEXT, image_size=32, context_length=70)
    resizing = Resizing(crop, interpolation, "even" if crop is None else "down")
    network.resizing = network.image_tower.resizing = resizing
    FORMATS["transformers"].write(network, tmp_path, {})
    archive = PictogramArchive.open()
    drawings = [archive.read_image(row) for row in range(0, 800, 100)]
    pictures = [torch.cat(drawings[:2], dim=1), torch.cat(drawings[2:5], dim=2), *drawings[5:]]  # high, wide, square
    ours = resize(pictures, 32, resizing)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(images=pictures, return_tensors="pt")
    assert (network.normalise(ours) - theirs["pixel_values"]).abs().max() < CLOSE
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    by_pillow = torch.from_numpy(squares(pictures, config)).permute(0, 3, 1, 2)
    exact = resize(pictures, 32, replace(resizing, resampler="pillow"))
    assert torch.equal(by_pillow, exact)
    back = load_two_tower(tmp_path)
    read = back.resizing
    assert back.context_length == 70  # beyond the 64 of every SigLIP that was published
    assert (read.crop, read.interpolation) == (pytest.approx(crop, abs=0.02) if crop else None, interpolation)


@pytest.mark.parametrize("crop", [None, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_open_clip_is_told_how_pictures_become_squares(tmp_path, crop, interpolation):
    """By open_clip's own transform of the folder, to the bit."""
    network = TwoTower(SIGLIP_IMAGE, SIGLIP_TEXT, image_size=32, context_length=12)
    resizing = Resizing(crop, interpolation, resampler="pillow")
    network.resizing = network.image_tower.resizing = resizing
    FORMATS["open_clip"].write(network, tmp_path, {})
    archive = PictogramArchive.open()
    drawings = [archive.read_image(row) for row in range(0, 800, 100)]
    pictures = [torch.cat(drawings[:2], dim=1), torch.cat(drawings[2:5], dim=2), *drawings[5:]]  # high, wide, square
    theirs = FORMATS["open_clip"].reload(tmp_path).pixels(pictures)
    assert (network.normalise(resize(pictures, 32, resizing)) - theirs).abs().max() < 1e-6  # the division by 255 alone


def test_a_margin_that_open_clip_does_not_cut_off_is_refused():
    network = TwoTower(SIGLIP_IMAGE, SIGLIP_TEXT, image_size=32, context_length=12)
    network.resizing = Resizing(0.875)
    with pytest.raises(UnheldError, match="lose a margin"):
        FORMATS["open_clip"].check(network)


@pytest.mark.parametrize("width", [16, 256])
def test_a_bag_of_words_is_a_bert_without_layers(tmp_path, width):
    """Tokens as unlike as those of training, rare ones near zero: a norm for each would weigh them alike."""
    text = TowerConfig("local:text_transformer", kwargs=MEAN | {"width": width})
    network = randomise(TwoTower(SIGLIP_IMAGE, text, image_size=32, context_length=12, embed_dim=12))
    loudness = torch.logspace(-3, 1, 49408)[torch.randperm(49408, generator=torch.Generator().manual_seed(2))]
    with torch.no_grad():
        network.text_tower.token_embedding.table.weight.mul_(loudness[:, None])
        network.text_tower.norm.weight.add_(torch.linspace(0, 2, width))  # neither one nor all alike
    FORMATS["open_clip"].write(network, tmp_path, {})
    captions = [*CAPTIONS, "!", "a !#% b", "word " * 20]  # '!' in '!#%' is id 0, with which captions are padded
    ids = FORMATS["open_clip"].reload(tmp_path).tokens(captions)
    assert torch.equal(ids, network.tokenizer(captions))
    assert (ids[5, :5] == 0).any()
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    with torch.no_grad():
        ours, found = network.encode_text(ids), theirs.encode_text(ids, normalize=True)
        assert (ours - found).abs().max() < 1e-6  # fp32 sums in another order
        ours, found = network.double().encode_text(ids), theirs.double().encode_text(ids, normalize=True)
        assert (
            ours - found
        ).abs().max() < 1e-7  # the table was written in fp32, and fp64 keeps what `eps` drowns there


ORDINARY = "its tokenizer pads"


@pytest.mark.parametrize(
    ("kwargs", "words", "reason"),
    [
        ({"norm_bias": True}, None, "norm_bias: false"),
        ({"mask_padding": False}, None, "mask_padding: false"),
        ({}, {"a": 0, "cat": 1, "[PAD]": 2, "[CLS]": 3}, ORDINARY),
        ({}, {"[PAD]": 0, "a": 1, "cat": 2}, "empty caption"),
    ],
)
def test_what_no_bert_without_layers_computes_is_refused(tmp_path, kwargs, words, reason):
    if words is not None:
        fast = FastTokenizer(WordLevel(words, unk_token="a"))
        fast.pre_tokenizer = Whitespace()
        if "[CLS]" in words:
            fast.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", words["[CLS]"])])
        else:
            fast.add_special_tokens(["[PAD]"])
        fast.save(str(tmp_path / "tokenizer.json"))
    text = TowerConfig("local:text_transformer", kwargs=MEAN | kwargs)
    source = "clip" if words is None else str(tmp_path / "tokenizer.json")
    network = randomise(TwoTower(SIGLIP_IMAGE, text, image_size=32, context_length=12, embed_dim=12, tokenizer=source))
    with pytest.raises(UnheldError, match=reason):
        FORMATS["open_clip"].check(network)


def test_transformers_has_a_processor_and_a_pipeline(tmp_path):
    # The pipeline pads captions of every SigLIP to 64 tokens.
    network = randomise(TwoTower(SIGLIP_IMAGE, SIGLIP_TEXT, image_size=32, context_length=64))
    FORMATS["transformers"].write(network, tmp_path, {})
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == "SiglipProcessor"
    pixels = torch.randint(0, 256, (3, 48, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    pipe = transformers.pipeline("zero-shot-image-classification", model=str(tmp_path))
    answers = pipe(picture, ["cat", "dog!"], hypothesis_template="a {}")
    found = {answer["label"]: answer["score"] for answer in answers}
    with torch.no_grad():
        x, y = network(resize([pixels], 32), network.tokenizer(["a cat", "a dog!"]))
        pairs = torch.sigmoid(network.log_scale.exp() * x @ y.T + network.bias)[0]
    assert found["cat"] == pytest.approx(pairs[0].item(), abs=1e-6)
    assert found["dog!"] == pytest.approx(pairs[1].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "image", "text", "arguments", "reason"),
    [
        ("transformers", SIGLIP_IMAGE, SIGLIP_TEXT, {"embed_dim": 8}, "embed_dim: null"),
        ("transformers", TowerConfig("timm:vit_tiny_patch16_224", kwargs=VIT), SIGLIP_TEXT, {}, "pools otherwise"),
        ("transformers", TowerConfig("timm:test_convnext"), SIGLIP_TEXT, {}, "timm's ConvNeXt"),
        (
            "transformers",
            TowerConfig(SIGLIP_IMAGE.name, kwargs=VIT | {"qk_norm": True}),
            SIGLIP_TEXT,
            {},
            "which SigLIP has not",
        ),
        ("open_clip", SIGLIP_IMAGE, BAG, {}, "pooling: mean"),
        ("open_clip", TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1]}), SIGLIP_TEXT, {}, "local:conv"),
        ("onnx", SIGLIP_IMAGE, SIGLIP_TEXT, {"saliency": SaliencyMasking(when="always")}, "leaves out patch tokens"),
    ],
)  # fmt: skip
def test_towers_of_another_form_are_refused(name, image, text, arguments, reason):
    network = TwoTower(image, text, **{"image_size": 32, "context_length": 12} | arguments)
    with pytest.raises(UnheldError, match=reason):
        FORMATS[name].check(network)
    told = refusal(network, name)
    assert told is not None
    assert name not in told.partition("Formats that can: ")[2]
    assert "safetensors" in told.partition("Formats that can: ")[2]


def test_a_clip_with_a_bias_is_refused_by_transformers(tmp_path):
    config = clip(tmp_path)
    network = TwoTower(config, config, context_length=12, tokenizer="clip")
    with pytest.raises(UnheldError, match="CLIPModel has no bias"):
        FORMATS["transformers"].check(network)


def test_adapters_are_merged(tmp_path):
    network = randomise(TwoTower(SIGLIP_IMAGE, SIGLIP_TEXT, image_size=32, context_length=12, lora=Lora(rank=2)))
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        before = network.encode_image(pictures)
        with pytest.raises(UnheldError, match="adapters"):
            FORMATS["open_clip"].check(network)
        merge_adapters(network)
        assert (network.encode_image(pictures) - before).abs().max() < CLOSE
    assert not any("lora" in name or "base_layer" in name for name in network.state_dict())
    FORMATS["open_clip"].check(network)
