"""Damaged, foreign and hostile checkpoints: refused in one line, nothing of theirs is run."""

import io
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from foreign import as_big_vision, open_clip_model, sentencepiece_file, siglip
from safetensors.torch import load_file, save_file

from siglightning.models import TwoTower, load_two_tower
from siglightning.models.interop.files import read_tensors
from siglightning.models.towers import TowerConfig

TRACE = "SIGLIGHTNING_TEST_TRACE"


class Hostile:
    """Unpickled, it makes the file that the environment names."""

    def __reduce__(self):
        return os.system, (f'touch "${TRACE}"',)


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """A path that must not come to be; that it would is shown first, in the way that is unsafe."""
    path = tmp_path / "trace"
    monkeypatch.setenv(TRACE, str(path))
    pickle.loads(pickle.dumps(Hostile()))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists(), "a checkpoint ran a command"


def hostile_files(folder):
    buffer = io.BytesIO()
    torch.save({"state_dict": {"visual.proj": Hostile()}}, buffer)
    (folder / "zip.pt").write_bytes(buffer.getvalue())
    torch.save({"visual.proj": Hostile()}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    (folder / "bare.pkl").write_bytes(pickle.dumps({"visual.proj": Hostile()}))
    shutil.copy(folder / "zip.pt", folder / "disguised.safetensors")
    objects = {name: np.array([Hostile()], dtype=object) for name in ("img/embedding/kernel", "txt/Embed_0/embedding")}
    np.savez(folder / "objects.npz", **objects)
    return ["zip.pt", "legacy.pt", "bare.pkl", "disguised.safetensors", "objects.npz"]


def test_no_file_runs_code(tmp_path, trace):
    for name in hostile_files(tmp_path):
        for read in (read_tensors, load_two_tower):
            with pytest.raises(ValueError, match="code from a checkpoint is never run") as error:
                read(tmp_path / name)
            assert name in str(error.value)


def test_a_folder_of_transformers_runs_no_code(tmp_path, trace):
    """Neither from a pickle of weights nor from modules that its config names."""
    siglip().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"logit_scale": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="No weights for a two-tower model"):
        load_two_tower(tmp_path)
    (tmp_path / "evil.py").write_text(f"import os\nos.system('touch \"${TRACE}\"')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="could not be loaded"):
        load_two_tower(tmp_path)


def test_a_run_names_no_classes_but_ours(tmp_path, trace):
    """config.yaml is read as plain data; a network of another package is not even imported."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-1.ckpt"
    torch.save({"state_dict": {"network.a": torch.zeros(1)}}, checkpoint)
    config = tmp_path / "run" / "config.yaml"
    config.write_text("model: {init_args: {network: {class_path: os.system, init_args: {command: 'touch trace'}}}}")
    with pytest.raises(ValueError, match=r"network 'os.system'; only a TwoTower"):
        load_two_tower(checkpoint)
    config.write_text("model: !!python/object/apply:os.system ['touch $SIGLIGHTNING_TEST_TRACE']")
    with pytest.raises(ValueError, match=r"config.yaml is no readable configuration"):
        load_two_tower(checkpoint)
    config.unlink()
    with pytest.raises(ValueError, match=r"config.yaml is missing, which tells how its network is built"):
        load_two_tower(checkpoint)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.5, 0.999])
def test_files_that_were_cut_short(tmp_path, share):
    """At the header, within a tensor, and at the index in the end."""
    weights = {"visual.proj": torch.randn(100, 100)}
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", **{"img/embedding/kernel": np.ones((100, 100))})
    for name in ("a.safetensors", "a.pt", "a.npz"):
        assert read_tensors(tmp_path / name)
        with pytest.raises(ValueError, match=r"cut short|is empty|is damaged"):
            load_two_tower(cut(tmp_path / name, share))


def test_bytes_that_changed_are_noticed_where_the_format_has_checksums(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones((100, 100)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_tensors(tmp_path / "a.npz")


def test_truncated_weights_in_a_folder(tmp_path):
    siglip().save_pretrained(tmp_path)
    cut(tmp_path / "model.safetensors", 0.7)
    with pytest.raises(ValueError, match="No weights for a two-tower model"):
        load_two_tower(tmp_path)


def test_what_is_no_checkpoint_of_two_towers(tmp_path):
    (tmp_path / "text.pt").write_text("not weights")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pt")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "jit.pt")
    expected = {
        "text.pt": "is no readable file of torch.save",
        "list.pt": "holds a list, expected named weights",
        "mixed.pt": "entries that are no tensors, first 'epoch'",
        "resnet.pt": "of no library that is known.*got fc.weight",
        "other.npz": "of no library that is known.*got a",
        "jit.pt": "TorchScript archive, which holds code",
        "absent.pt": "no such file or folder",
        ".": r"is no checkpoint: expected config.json \(transformers\)",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message):
            load_two_tower(tmp_path / name)
    with pytest.raises(ValueError, match=r"Unknown kind of checkpoint 'openclip'\. Nearest: open_clip"):
        load_two_tower(tmp_path, kind="openclip")


def test_weights_of_another_model_name_the_first_differences(tmp_path):
    tokenizer = sentencepiece_file(tmp_path / "small.model")
    siglip().save_pretrained(tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["text_model.head.weight"] = torch.zeros(17, 16)
    weights["extra"] = weights.pop("vision_model.head.probe")
    save_file(weights, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    message = (
        r"text_model.head.weight is \[16, 16\] in the model and \[17, 16\] in the checkpoint; "
        r"vision_model.head.probe is missing from the checkpoint; extra is unknown to the model"
    )
    with pytest.raises(ValueError, match=message):
        load_two_tower(tmp_path / "hf", tokenizer=tokenizer)
    tower = TowerConfig(f"hf:{tmp_path / 'hf'}", pretrained=True)  # transformers would warn and begin at random
    with pytest.raises(ValueError, match=message):
        TwoTower(tower, tower, tokenizer=tokenizer)

    model, config = open_clip_model(tmp_path, "clip")
    state = model.state_dict() | {"visual.proj": torch.zeros(16, 11)}
    del state["ln_final.bias"]
    torch.save(state, tmp_path / "weights.pt")
    message = (
        r"visual.proj|image_tower.trunk.proj is \[16, 12\] in the model and \[16, 11\] in the checkpoint; text_tower"
    )
    with pytest.raises(ValueError, match=message):
        load_two_tower(tmp_path / "weights.pt", architecture=str(config), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="does not say of which model: give `architecture`"):
        load_two_tower(tmp_path / "weights.pt", tokenizer=tokenizer)

    arrays = as_big_vision(siglip())
    arrays["params/img/Transformer/encoderblock_1/LayerNorm_0/scale"] = np.ones(17)
    arrays["params/img/head/kernel"] = np.ones((16, 5))
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=r"1.layer_norm1.weight is \[16\] in the model and \[17\].*head.*unknown"):
        load_two_tower(tmp_path / "a.npz", tokenizer=tokenizer)
    del arrays["params/txt/Encoder_0/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"]
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(ValueError, match="is no SigLIP of big_vision: KeyError 'txt/Encoder_0/encoderblock_0"):
        load_two_tower(tmp_path / "b.npz", tokenizer=tokenizer)
