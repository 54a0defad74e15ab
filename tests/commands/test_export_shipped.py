"""The networks of the shipped configurations: where docs/export.md says that they go, and that they arrive."""

from pathlib import Path

import pytest
import torch
import yaml
from exporting import drawings, require_same

from siglightning.models import TwoTower
from siglightning.models.export import FORMATS, refusal
from siglightning.models.interop.from_run import arguments_of

CONFIGS = Path(__file__).parents[2] / "configs"
# What docs/export.md promises.
GOES_TO = {
    "quickstart": {"open_clip", "onnx", "safetensors"},
    "recipe/pocket_siglip": {"transformers", "open_clip", "onnx", "safetensors"},
}


@pytest.fixture(scope="module")
def shipped():
    """The networks as their configurations build them, at random; norms have learnt something, too."""
    networks = {}
    for name in GOES_TO:
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        torch.manual_seed(0)
        network = TwoTower(**arguments_of(config["model"]["init_args"]["network"]["init_args"]))
        with torch.no_grad():
            for parameter in (*network.image_tower.parameters(), *network.text_tower.parameters()):
                parameter.add_(0.02 * torch.randn_like(parameter))
        networks[name] = network.eval()
    return networks


@pytest.mark.parametrize("name", GOES_TO)
def test_no_format_that_is_promised_refuses_it(shipped, name):
    assert {form for form in FORMATS if refusal(shipped[name], form) is None} == GOES_TO[name]


@pytest.mark.parametrize(
    ("name", "form"), [("quickstart", "open_clip"), ("quickstart", "onnx"), ("recipe/pocket_siglip", "open_clip")]
)
def test_it_arrives(shipped, tmp_path, name, form):
    network = shipped[name]
    FORMATS[form].write(network, tmp_path, {})
    theirs, (pictures, captions) = FORMATS[form].reload(tmp_path), drawings(network)
    for count in (1, 7, 40):  # any batch, of ONNX's graphs too
        out = theirs.outputs(theirs.pixels(list(pictures[:count])), theirs.tokens(captions[:count]))
        require_same(network, out, pictures[:count], captions[:count])
