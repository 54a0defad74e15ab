"""Multi-label inference on embedded pictures: what is fitted on what, and logits against sums by hand."""

import math
import os
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from finetuning import encoder, pictures, task, trainer, two_tower
from lightning.pytorch.utilities import rank_zero_only

from siglightning.callbacks import PredictionWriter
from siglightning.distributed.local import run_ranks
from siglightning.evaluation import ThresholdRule, fit_calibration
from siglightning.tasks import ContrastiveTask, MultiLabelTask

SMALL = {"test_styles": ["twemoji"], "train_styles": ["noto"]}
ODD = {"split_seed": 1}  # 1,165 and 331 pictures to test on, which neither two nor three processes divide
FIT = {"temperature": "fit", "per_class_bias": True}


def data(**kwargs):
    return pictures(**{**SMALL, "global_batch_size": 12, "eval_batch_size": 256, **kwargs})


def classifier(path, **kwargs):
    """A checkpoint whose weights are random but not small, so that its logits are far from calibrated."""
    module = task()
    module.class_names = names = data_classes(**kwargs)
    torch.manual_seed(1)
    module._make_head(len(names))
    module.head.weight.data.normal_(0, 3)
    torch.save({"state_dict": module.state_dict(), "class_names": names, "pytorch-lightning_version": "2.6.6"}, path)
    return module


def data_classes(**kwargs):
    module = data(**kwargs)
    module.input_spec = task().input_spec
    module.setup("test")
    return module.class_names


def run(folder, module, command="test", path=None, pictures_=None, **kwargs):
    runner = trainer(folder, **{"limit_val_batches": 1.0, "limit_test_batches": 1.0, **kwargs})
    getattr(runner, command)(module, datamodule=pictures_ or data(), ckpt_path=path, weights_only=path and True)
    return runner


@pytest.mark.parametrize("targets", ["category", "tags"])
def test_a_fit_sees_the_validation_set_and_nothing_else(tmp_path, targets):
    """T and biases are those of the validation set's logits, which a second run collects on its own."""
    kwargs = {"targets": targets, "min_tag_count": 60}
    classifier(tmp_path / "head.ckpt", **kwargs)
    module = MultiLabelTask(encoder(), **FIT, thresholds=ThresholdRule("best_f1"))
    run(tmp_path, module, path=tmp_path / "head.ckpt", pictures_=data(**kwargs))
    plain = MultiLabelTask(encoder())
    run(tmp_path, plain, "validate", path=tmp_path / "head.ckpt", pictures_=data(**kwargs))
    val = plain.predictions["val"]
    assert (val.labels.ndim == 2) == (targets == "tags")
    fit = fit_calibration(val.logits, val.labels, per_class_bias=True)
    assert module.calibration.temperature == fit.calibration.temperature > 2
    assert torch.equal(module.calibration.bias, fit.calibration.bias)
    assert module.fit_result.num_pictures == len(val.ids)
    assert set(module.predictions) == {"seen_concepts", "unseen_concepts"}
    for name in module.predictions:
        before, after = (module.evaluations[f"{name}, {each}"].metrics for each in ("sigmoid", str(module.calibration)))
        assert after["nll"].high < before["nll"].low  # a fit on other pictures helps these
        assert sum(module.reliability[name]["sigmoid"].counts) == math.prod(module.predictions[name].logits.shape)


def test_prompts_give_the_logits_of_the_sigmoid_loss(tmp_path):
    """``exp(t') x.y + b`` of each picture and prompt, from a contrastive checkpoint."""
    network = two_tower()
    torch.save(
        {"state_dict": ContrastiveTask(network).state_dict(), "pytorch-lightning_version": "2.6.6"}, tmp_path / "c"
    )
    fresh = two_tower()
    fresh.log_scale.data += 5  # to be replaced by the checkpoint's
    module = MultiLabelTask(fresh, prompts="classes", templates=["{}", "a {}!"], temperature=2.0)
    run(tmp_path, module, path=tmp_path / "c", limit_test_batches=1)
    found = module.predictions["seen_concepts"]
    row, image = found.image_rows[3], found.images[3]
    network.eval()
    x = network.encode_image(image[None])[0]
    for column in (0, 5):
        words = [found.class_names[column], f"a {found.class_names[column]}!"]
        y = network.encode_text(network.tokenizer(words)).mean(0)
        logit = math.exp(network.log_scale) * (x @ y / y.norm()) + network.bias
        assert found.logits[row, column].item() == pytest.approx(logit.item(), abs=1e-4)
    assert list(module.evaluations)[-1] == "unseen_concepts, sigmoid(z / 2)"


def test_prompts_read_the_network_of_a_fine_tuned_checkpoint(tmp_path):
    """Its classifier is left alone."""
    module = task(two_tower())
    module.class_names = ["a", "b"]
    module._make_head(2)
    module.network.log_scale.data += 1
    torch.save(
        {"state_dict": module.state_dict(), "class_names": ["a", "b"], "pytorch-lightning_version": "2.6.6"},
        tmp_path / "c",
    )
    asked = MultiLabelTask(two_tower(), prompts=["x", "y", "z"], thresholds=ThresholdRule("top_k", k=2))
    runner = trainer(tmp_path, limit_predict_batches=1)
    (first, _) = runner.predict(asked, datamodule=data(), ckpt_path=tmp_path / "c", weights_only=True)
    assert asked.network.log_scale.item() == pytest.approx(math.log(10) + 1)
    scores = first[0]
    assert scores.scores.shape == (256, 3)
    assert scores.passed.sum(1).tolist() == [2] * 256
    assert scores.truths is None  # the data's classes are others


class Overlapping(type(data())):
    """The test set holds one picture of the validation set."""

    def build(self, spec):
        super().build(spec)
        seen, val = self.test_sets["seen_concepts"], self.val_set
        seen._ids[0], seen.rows[0] = val._ids[0], val.rows[0]


class Renamed(type(data())):
    """The test set holds another picture under the key of one of the validation set."""

    def build(self, spec):
        super().build(spec)
        self.test_sets["seen_concepts"]._ids[0] = self.val_set._ids[0]


def test_a_picture_in_both_sets_is_refused_and_an_equal_key_alone_is_not(tmp_path):
    classifier(tmp_path / "head.ckpt")
    with pytest.raises(ValueError, match="1 are in both sets"):
        run(tmp_path, MultiLabelTask(encoder(), **FIT), path=tmp_path / "head.ckpt", pictures_=Overlapping(**SMALL))
    run(tmp_path, MultiLabelTask(encoder(), **FIT), path=tmp_path / "head.ckpt", pictures_=Renamed(**SMALL))
    # nothing is fitted, so that nothing can leak
    run(tmp_path, MultiLabelTask(encoder()), path=tmp_path / "head.ckpt", pictures_=Overlapping(**SMALL))


def test_one_prompt_is_enough():
    module = MultiLabelTask(two_tower(), prompts=["anything"])
    runner = trainer(None, limit_predict_batches=1)
    (first, _) = runner.predict(module, datamodule=data())
    assert first[0].scores.shape == (256, 1)
    with pytest.raises(ValueError, match="Expected names to ask for, got none"):
        trainer(None).predict(MultiLabelTask(two_tower(), prompts=[]), datamodule=data())


def on_this_rank(folder, path):
    rank = dist.get_rank()
    rank_zero_only.rank = rank
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return report(folder, path, dist.get_world_size())


def report(folder, path, devices):
    """Fitted values on this process, and all measures on the first."""
    module = MultiLabelTask(encoder(), **FIT, thresholds=ThresholdRule("best_f1"))
    options = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "use_distributed_sampler": False}
    options["precision"] = "64-true"
    runner = trainer(folder, PredictionWriter("csv"), limit_test_batches=1.0, **options)
    measured = runner.test(module, datamodule=data(**ODD), ckpt_path=path, weights_only=True, verbose=False)
    runner.predict(module, datamodule=data(**ODD), ckpt_path=path, weights_only=True, return_predictions=False)
    counts = [len(found.ids) for found in module.predictions.values()]
    return module.calibration.temperature, module.decision.thresholds, measured, counts


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    classifier(folder / "head.ckpt", **ODD)
    return folder, report(folder, folder / "head.ckpt", 1)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_reports_and_writes_what_one_does(tmp_path, one, world_size):
    folder, (temperature, thresholds, measured, counts) = one
    assert all(count % world_size for count in counts)
    ranks = run_ranks(world_size, on_this_rank, str(tmp_path), str(folder / "head.ckpt"))
    assert ranks[0][3] == counts
    for found in ranks:  # logits of other batches differ by roundings of float64 before they are kept in float32
        assert found[0] == pytest.approx(temperature, rel=1e-6)
        torch.testing.assert_close(found[1], thresholds, rtol=1e-6, atol=1e-7)
        for ours, theirs in zip(found[2], measured, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)
    for name in ("seen_concepts", "unseen_concepts"):
        ids = [(of_run / f"{name}.csv").read_text().splitlines() for of_run in (folder, tmp_path)]
        assert [line.split(",")[0] for line in ids[0]] == [line.split(",")[0] for line in ids[1]]
        assert all(a != b for a, b in pairwise(dict.fromkeys(line.split(",")[0] for line in ids[1])))
