"""A run goes on with another number of processes: the same global batches, the same weights but for rounding."""

import json
from collections import defaultdict

import pytest
from runs import PLAIN, SMALL, fit, weights

SGD = "    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.005}}\n"
CONFIG = (
    SMALL.replace("devices: 3", "devices: 2")
    .replace("max_steps: 6", "max_steps: 8")
    .replace("dropout: 0.2", "dropout: 0.0")  # each process draws its own
    .replace("data:\n", f"{SGD}data:\n")
    .replace("trainer:\n", "trainer:\n  precision: 64-true\n")
)


def witness(folder, *more):
    """The flag for a record of all samples, and for further callbacks."""
    callbacks = [{"class_path": "faulty.SampleIds", "init_args": {"folder": str(folder)}}, *more]
    return f"--config={json.dumps({'trainer': {'callbacks': callbacks}})}"


def batches(folder):
    """Step to its samples, whatever process had them."""
    found = defaultdict(list)
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            step, identity = line.split(" ", 1)
            found[int(step)].append(identity)
    return {step: sorted(identities) for step, identities in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    ended = fit(folder, "undisturbed", witness(folder / "undisturbed ids"), config=CONFIG)
    assert ended.code == 0, ended.output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
def test_resumed_on_another_number_of_processes(folder, observe, processes):
    kill = {"class_path": "faulty.Kill", "init_args": {"rank": 1, "step": 5, "note": str(folder / "pid")}}
    name = f"on {processes}"
    killed = fit(folder, name, witness(folder / f"{name} before", kill), config=CONFIG)
    assert killed.code == 4, killed.output
    more = [f"--trainer.devices={processes}"]
    rest = fit(folder, name, witness(folder / f"{name} after"), *more, launch=PLAIN, config=CONFIG)
    assert rest.code == 0, rest.output
    assert "from step 4" in rest.output
    expected = batches(folder / "undisturbed ids")
    assert {len(set(ids)) for ids in expected.values()} == {12}
    assert batches(folder / f"{name} after") == {step: expected[step] for step in range(4, 8)}
    assert len(list((folder / f"{name} after").iterdir())) == processes
    found, wanted = weights(folder / name), weights(folder / "undisturbed")
    assert found.keys() == wanted.keys()
    difference = max(float((found[key] - value).abs().max()) for key, value in wanted.items())
    assert difference < 1e-12  # fp64: some roundings of weights of order 1
    observe(
        f"killed on 2 processes, resumed on {processes}",
        expected="the same global batches; weights within 1e-6 (here fp64 and SGD: 1e-12)",
        observed=f"the same samples in every step; largest difference of a weight {difference:.1e}",
        seconds=rest.seconds,
    )
