"""Studies at their smallest size, end to end; stored noise equals embedded noise; few-shot accuracy and spikes."""

import logging

import numpy as np
import pytest
import torch

from benchmarks.paper.cells import failures, finished, run_cell, run_cells
from benchmarks.paper.features import (
    ENGLISH,
    NOISE_SEED,
    Store,
    StudyFeatures,
    features_of,
    locked_network,
    pictograms,
    preparing,
    store_features,
)
from benchmarks.paper.figure5 import WINDOW, spikes
from benchmarks.paper.pages import pages_of, study_page
from benchmarks.paper.studies import LEFT_OUT, STUDIES
from benchmarks.paper.study import Workspace
from benchmarks.paper.table2 import language_names
from siglightning.data import Collate, LabelNoise
from siglightning.data.sampler import SampleKey
from siglightning.tasks import ContrastiveTask


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("paper"), "tiny", 1)


def shown(study, workspace):
    """Run a study and return its page; every cell must have worked."""
    run_cells(study, workspace, jobs=1)
    assert failures(study, workspace) == {}
    assert len(finished(study, workspace).cells) == len(study.cells(workspace))
    line = study_page(study, workspace, "command")
    assert "Cannot be told at this scale" in line  # one seed has no spread
    assert (pages_of(workspace) / f"{study.name}.png").stat().st_size > 10_000
    return (pages_of(workspace) / f"{study.name}.md").read_text()


def test_label_noise_end_to_end(workspace):
    page = shown(STUDIES["figure7"], workspace)
    assert "| image, text & alignment | 0.5 |" in page
    assert "one seed, which has no spread" in page
    values = finished(STUDIES["figure7"], workspace).cells[0].values
    assert {"val t2i_recall@1", "seen_concepts t2i_recall@1", "unseen_concepts zeroshot_acc"} <= values.keys()


@pytest.mark.parametrize("name", ["figure6", "table2", "memory"])  # from pixels, in languages, in processes
def test_a_cell_of_each_kind_runs(name, workspace):
    study = STUDIES[name]
    study.prepare(workspace)
    level = logging.getLogger("lightning.pytorch").level
    assert run_cell(study, study.cells(workspace)[0], workspace) == "done", failures(study, workspace)
    assert logging.getLogger("lightning.pytorch").level == level  # others of this process are to hear Lightning


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STUDIES if name != "figure7"])
def test_every_other_study_end_to_end(name, workspace):
    shown(STUDIES[name], workspace)


def test_noise_on_features_is_that_of_noisy_data(workspace):
    """Half of pictures, texts and alignments struck: mixed from two stores, and by the towers from noisy samples."""
    noise = LabelNoise(["image", "text", "alignment"], 0.5, NOISE_SEED)
    preparing("english", "noise")(workspace)
    task = ContrastiveTask(locked_network(workspace).eval())
    mixed = StudyFeatures(features_of("english", workspace), features_of("noise", workspace), noise)
    noisy = pictograms(workspace, Store(ENGLISH, views=1, noise=noise))
    for data in (mixed, noisy):
        data.input_spec = task.input_spec
        data.setup("fit")
    keys = [SampleKey(i, 0) for i in range(0, len(noisy.train_set), 13)]
    index = np.array([key.sample for key in keys])
    assert all(0.3 < noise.struck(kind, index).mean() < 0.7 for kind in noise.corrupt)
    batch = Collate(task.network.tokenizer)(noisy.train_set.__getitems__(keys))
    found = Collate(task.network.tokenizer)(mixed.train_set.__getitems__(keys))
    assert list(found["id"]) == list(batch["id"])
    assert torch.equal(found["match_id"], batch["match_id"])
    with torch.no_grad():
        images, texts = task.network.image_features(batch["image"]), task.network.text_features(batch["text"])
    # Batches of other neighbours round differently; features are of order one.
    torch.testing.assert_close(found["image_embed"], images, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["text_embed"], texts, atol=1e-4, rtol=1e-4)


def test_whole_stores_are_not_embedded_again(workspace):
    store_features("english", workspace)
    files = sorted(features_of("english", workspace).rglob("*.arrow"))
    before = [path.stat().st_mtime_ns for path in files]
    store_features("english", workspace)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_settings_are_plain_and_all_differ():
    for scale in ("full", "tiny"):
        for name, study in STUDIES.items():
            cells = study.cells(Workspace(None, scale, 3))
            assert len({str(cell) for cell in cells}) == len(cells), name
            assert {cell["seed"] for cell in cells} == {3, 4, 5}
            losses = {cell["loss"] for cell in cells if "loss" in cell}
            assert losses in ({"sigmoid", "softmax"}, {"sigmoid"}, set())
    assert not {name for name in LEFT_OUT if name in STUDIES}


def test_spikes_are_counted_once_each():
    calm = [1.0 + 0.1 * (step % 3) for step in range(200)]
    assert spikes(calm) == 0
    assert spikes([9.0, *calm]) == 0  # within the first window
    calm[WINDOW + 10] = 5.0
    assert spikes(calm) == 1
    calm[WINDOW + 11] = 5.0  # the same spike goes on
    calm[150] = 5.0
    assert spikes(calm) == 2


def test_every_language_has_names():
    names = language_names()
    assert len(names) == 12
    assert names["de"]["dog face"] == "Hundegesicht"
    assert names["en"]["dog face"] == "dog face"
