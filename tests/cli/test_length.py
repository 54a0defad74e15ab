"""A run's length in examples, and the names of runs that variants make."""

from types import SimpleNamespace

import pytest

from siglightning.cli.configs import name_of_run
from siglightning.cli.length import resolve_length


def config(examples_seen, batch=128, max_steps=-1, max_epochs=None, accumulate=1):
    trainer = SimpleNamespace(max_steps=max_steps, max_epochs=max_epochs, accumulate_grad_batches=accumulate)
    data = SimpleNamespace(get=lambda name: {"global_batch_size": batch})
    return SimpleNamespace(examples_seen=examples_seen, trainer=trainer, data=data)


@pytest.mark.parametrize(("examples", "accumulate", "steps"), [(128, 1, 1), (129, 1, 2), (1280, 2, 5), (None, 1, -1)])
def test_steps_see_at_least_the_examples(examples, accumulate, steps):
    run = config(examples, accumulate=accumulate)
    resolve_length(run)
    assert run.trainer.max_steps == steps
    assert run.examples_seen is None  # the saved configuration says it once


@pytest.mark.parametrize("given", [{"max_steps": 3}, {"max_epochs": 2}])
def test_an_explicit_length_wins_and_is_told(given, capsys):
    run = config(1280, **given)
    resolve_length(run)
    assert run.trainer.max_steps == given.get("max_steps", -1)
    assert "not that of examples_seen 1,280" in "".join(capsys.readouterr())


@pytest.mark.parametrize("examples", [0, -5])
def test_no_examples_are_no_run(examples):
    with pytest.raises(ValueError, match=f"number of examples of the whole run, got {examples}"):
        resolve_length(config(examples))


def test_a_batch_is_needed():
    with pytest.raises(ValueError, match="without `global_batch_size`"):
        resolve_length(config(5, batch=None))


def test_a_variant_is_another_run():
    recipe, variant = "--config=configs/recipe/siglip.yaml", "configs/variant/softmax.yaml"
    assert name_of_run(["fit", recipe, "--config", variant]) == "siglip-softmax"
    assert name_of_run(["fit", recipe, "--config=configs/logger/wandb.yaml"]) == "siglip"
    assert name_of_run(["fit", "--trainer.max_steps", "3"]) is None
