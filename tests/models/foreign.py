"""Small random models of other libraries, saved as those libraries save them, and what they say of a batch."""

import json

import numpy as np
import open_clip
import sentencepiece
import torch
import transformers
from torch.nn import functional

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT_SIZE = {"vocab_size": 50, "max_position_embeddings": 8}
SPECIAL = {"bos_token_id": 2, "eos_token_id": 49, "pad_token_id": 1}
GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=GENERATOR)
TEXT = torch.randint(3, 49, (4, 8), generator=GENERATOR)
TEXT[:, -1] = 49  # the end of each text, which CLIP pools
T_PRIME, BIAS = 5.25, -12.5  # t' beyond log 100 = 4.605


def shaken(model, std=0.2):
    """Every weight random: initial biases are zero, which would hide a missing one."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    for name, value in {"logit_scale": T_PRIME, "logit_bias": BIAS}.items():
        if getattr(model, name, None) is not None:
            getattr(model, name).data.fill_(value)
    return model.eval()


def siglip(**vision):
    text = SMALL | TEXT_SIZE | SPECIAL | {"projection_size": 16}
    vision = SMALL | {"image_size": 32, "patch_size": 8} | vision
    return shaken(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)))


def siglip2():
    text = SMALL | TEXT_SIZE | SPECIAL | {"projection_size": 16}
    vision = SMALL | {"num_patches": 16, "patch_size": 8}
    return shaken(transformers.Siglip2Model(transformers.Siglip2Config(text_config=text, vision_config=vision)))


def clip():
    text = SMALL | TEXT_SIZE | SPECIAL | {"hidden_size": 8}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=SMALL | {"image_size": 32, "patch_size": 8}, projection_dim=12
    )
    return shaken(transformers.CLIPModel(config))


def open_clip_model(folder, kind):
    """A model of open_clip from a JSON config, and the path of that config."""
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
    if kind == "clip":
        vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
        config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    else:  # as ViT-B-16-SigLIP and ViT-B-16-SigLIP2, with a smaller ViT of timm inside
        vision = {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}
        text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
        text |= {"act_kwargs": {"approximate": "tanh"}} if kind == "siglip2" else {}
        config = {"embed_dim": 96, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    path = folder / f"tiny_interop_{kind}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return shaken(open_clip.create_model(path.stem)), path


def as_big_vision(model, *, scanned=False, prefix="params/"):
    """The arrays of a SiglipModel or Siglip2Model as flax names and lays them out, written down the slow way."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    arrays = {"t": state["logit_scale"], "b": state["logit_bias"]}

    def dense(name, source):
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = state[f"{source}.weight"].T, state[f"{source}.bias"]

    def norm(name, source):
        arrays[f"{name}/scale"], arrays[f"{name}/bias"] = state[f"{source}.weight"], state[f"{source}.bias"]

    def attention(name, weights, biases, out, heads):
        for part in ("query", "key", "value"):
            width = len(biases[part])
            arrays[f"{name}/{part}/kernel"] = weights[part].T.reshape(width, heads, width // heads)
            arrays[f"{name}/{part}/bias"] = biases[part].reshape(heads, width // heads)
        arrays[f"{name}/out/kernel"] = state[f"{out}.weight"].T.reshape(heads, width // heads, width)
        arrays[f"{name}/out/bias"] = state[f"{out}.bias"]

    def block(name, source):
        norm(f"{name}/LayerNorm_0", f"{source}.layer_norm1")
        norm(f"{name}/LayerNorm_1", f"{source}.layer_norm2")
        dense(f"{name}/MlpBlock_0/Dense_0", f"{source}.mlp.fc1")
        dense(f"{name}/MlpBlock_0/Dense_1", f"{source}.mlp.fc2")
        parts = {"query": "q", "key": "k", "value": "v"}
        weights = {part: state[f"{source}.self_attn.{letter}_proj.weight"] for part, letter in parts.items()}
        biases = {part: state[f"{source}.self_attn.{letter}_proj.bias"] for part, letter in parts.items()}
        attention(f"{name}/MultiHeadDotProductAttention_0", weights, biases, f"{source}.self_attn.out_proj", heads=2)

    vision, text = "vision_model", "text_model"
    kernel = state[f"{vision}.embeddings.patch_embedding.weight"]
    arrays["img/embedding/kernel"] = kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0)
    arrays["img/embedding/bias"] = state[f"{vision}.embeddings.patch_embedding.bias"]
    positions = state[f"{vision}.embeddings.position_embedding.weight"]
    arrays["img/pos_embedding"] = positions.reshape(4, 4, -1) if kernel.ndim == 2 else positions[None]
    norm("img/Transformer/encoder_norm", f"{vision}.post_layernorm")
    arrays["img/MAPHead_0/probe"] = state[f"{vision}.head.probe"]
    norm("img/MAPHead_0/LayerNorm_0", f"{vision}.head.layernorm")
    dense("img/MAPHead_0/MlpBlock_0/Dense_0", f"{vision}.head.mlp.fc1")
    dense("img/MAPHead_0/MlpBlock_0/Dense_1", f"{vision}.head.mlp.fc2")
    names = ("query", "key", "value")
    weights = dict(zip(names, np.split(state[f"{vision}.head.attention.in_proj_weight"], 3), strict=True))
    biases = dict(zip(names, np.split(state[f"{vision}.head.attention.in_proj_bias"], 3), strict=True))
    attention("img/MAPHead_0/MultiHeadDotProductAttention_0", weights, biases, f"{vision}.head.attention.out_proj", 2)
    arrays["txt/Embed_0/embedding"] = state[f"{text}.embeddings.token_embedding.weight"]
    arrays["txt/pos_embedding"] = state[f"{text}.embeddings.position_embedding.weight"][None]
    norm("txt/Encoder_0/encoder_norm", f"{text}.final_layer_norm")
    dense("txt/head", f"{text}.head")
    for tower, source in {"img/Transformer": vision, "txt/Encoder_0": text}.items():
        for layer in range(2):
            block(f"{tower}/encoderblock_{layer}", f"{source}.encoder.layers.{layer}")
    if scanned:
        for name in [name for name in arrays if "/encoderblock_0/" in name]:
            layers = [arrays.pop(name.replace("encoderblock_0", f"encoderblock_{layer}")) for layer in range(2)]
            arrays[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    return {prefix + name: value for name, value in arrays.items()}


def logits(images, texts, scale, bias=0.0):
    """``exp(t') x.y + b`` of unit rows, pictures first."""
    images, texts = functional.normalize(images, dim=-1), functional.normalize(texts, dim=-1)
    return float(np.exp(scale)) * images @ texts.T + bias


def sentencepiece_file(path, vocab_size=48, **kwargs):
    """A vocabulary in T5's layout: pad 0, end of text 1, unknown 2."""
    lines = ["a photo of a cat", "two dogs running", "the red bicycle", "große Augen", "naïve café menu", "0123456789"]
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines * 4), model_writer=file, vocab_size=vocab_size, hard_vocab_limit=False,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, **kwargs,
        )  # fmt: skip
    return str(path)
