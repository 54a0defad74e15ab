"""Code that lies beside the weights, in modules that configurations name: never run, and nobody is asked whether to."""

import contextlib
import io
import re
import shutil

import pytest
from foreign import open_clip_model
from test_checkpoint_safety import trace as trace  # a fixture
from test_interop_doors import DOORS, MODEL_OF_ITS_OWN, NEVER, edit_config, pickled, through_init_from, with_module
from test_interop_doors import intact as intact  # a fixture

from siglightning.commands.doctor.origin import describe
from siglightning.models.interop import open_checkpoint

TOKENIZER_OF_ITS_OWN = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}


def edit_text(folder, **settings):
    edit_config(folder, lambda found: found["model_cfg"]["text_cfg"].update(settings), "open_clip_config.json")


def trusting_open_clip(folder):
    with_module(folder, "tokenizer_config.json", TOKENIZER_OF_ITS_OWN)
    edit_text(folder, hf_tokenizer_name="x", tokenizer_kwargs={"trust_remote_code": True})


def asking_open_clip(folder):
    with_module(folder, "tokenizer_config.json", TOKENIZER_OF_ITS_OWN)
    edit_text(folder, hf_tokenizer_name="x")


def open_clip_around_code(folder):
    with_module(folder / "text", "config.json", MODEL_OF_ITS_OWN)
    edit_text(folder, hf_model_name=str(folder / "text"), hf_proj_type="linear", hf_pooler_type="mean_pooler")


def transformers_with_a_tokenizer(folder):
    with_module(folder, "tokenizer_config.json", TOKENIZER_OF_ITS_OWN)


def an_export_with_a_class(folder):
    with_module(folder, "unused.json", {})
    edit_config(folder, lambda found: found["network"].update(lora={"class_path": "evil.Evil"}))


def an_export_with_a_pickle(folder):
    """open_clip reads weights of one tower as it is told to."""
    _, config = open_clip_model(folder, "clip")
    pickled(folder / "tower.pt")
    kwargs = {"pretrained_text_path": str(folder / "tower.pt"), "weights_only": False}
    tower = {"name": f"open_clip:{config}", "kwargs": kwargs}
    edit_config(folder, lambda found: found["network"].update(text_tower=tower, context_length=8))


def an_export_with_a_path(folder):
    pickled(folder / "tower.pt")
    tower = {"name": "timm:test_vit3", "kwargs": {"checkpoint_path": str(folder / "tower.pt")}}
    edit_config(folder, lambda found: found["network"].update(image_tower=tower))


# kind, what is done to it, and what the doors say that take tokenizer and network as the folder describes them.
CODE = {
    "open_clip's tokenizer, trusted": (
        "open_clip",
        trusting_open_clip,
        f"tokenizer_kwargs trust_remote_code; known.*{NEVER}",
    ),
    "open_clip's tokenizer, asked for": ("open_clip", asking_open_clip, NEVER),
    "open_clip's text tower": ("open_clip", open_clip_around_code, NEVER),
    "a tokenizer of transformers": ("transformers", transformers_with_a_tokenizer, "has no tokenizer|could not be"),
    "an argument of an export": ("safetensors", an_export_with_a_class, f"`lora` names the class 'evil.Evil'.*{NEVER}"),
    "a tower of an export": ("safetensors", an_export_with_a_pickle, "has only 50 embeddings"),
    "a path in an export": ("safetensors", an_export_with_a_path, "give `pretrained` that path instead"),
}


@pytest.mark.parametrize("name", CODE)
def test_code_beside_the_weights_is_neither_run_nor_asked_about(intact, name, tmp_path, trace, capsys, monkeypatch):
    kind, spoil, message = CODE[name]
    _, folder, task, _ = intact[kind]
    shutil.copytree(folder, tmp_path / "copy")
    spoil(tmp_path / "copy")
    monkeypatch.syspath_prepend(tmp_path / "copy")
    for door in DOORS:
        monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 20))
        code, told = door(tmp_path / "copy", task, {}, tmp_path / "out", capsys)
        assert not trace.exists(), door.__name__
        assert code == 2 or door is through_init_from, (door.__name__, told)
        assert code == 0 or re.search(message, " ".join(told.split())), (door.__name__, told)
        assert "y/N" not in told + "".join(capsys.readouterr())
    with contextlib.suppress(ValueError):
        describe(open_checkpoint(tmp_path / "copy"))  # as the doctor does
