"""Two hosts that share nothing but a cable: network namespaces joined by a veth pair, with torchrun on each."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from runs import callback, environment

from siglightning.cli import main

CONFIG = """
model:
  init_args:
    network:
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 8, depths: [1, 1]}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 16, depth: 1, heads: 2}}
        embed_dim: 16
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.005, weight_decay: 0.0}}
data:
  init_args: {global_batch_size: 12}
trainer:
  max_steps: 4
  limit_val_batches: 0
  precision: 64-true
  enable_progress_bar: false
  logger: false
"""
STRATEGY = "{class_path: siglightning.distributed.RingDDPStrategy, init_args: {ring_timeout_s: 18, timeout_s: 60}}"
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def sh(command):
    return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout


@pytest.fixture
def hosts():
    """Names of two namespaces with addresses of their own; skips, saying why, where the machine forbids them."""
    names = [f"siglightning-{os.getpid()}-{side}" for side in "ab"]
    cables = [f"sig{os.getpid() % 10**6}{side}" for side in "ab"]
    if shutil.which("ip") is None:
        pytest.skip("no `ip` command (Debian package iproute2)")
    try:
        for name in names:
            sh(f"ip netns add {name}")
        sh(f"ip link add {cables[0]} type veth peer name {cables[1]}")
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            sh(f"ip link set {cable} netns {name}")
            sh(f"ip -n {name} addr add {address}/24 dev {cable}")
            sh(f"ip -n {name} link set {cable} up")
            sh(f"ip -n {name} link set lo up")
        yield list(zip(names, cables, strict=True))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def start_on(hosts, number, arguments, folder, *options):
    """Start torchrun on one host; rank r is the process of host r."""
    name, cable = hosts[number]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *options]
    launch += [f"--node_rank={number}", f"--master_addr={ADDRESSES[0]}", "--master_port=29511"]
    command = ["ip", "netns", "exec", name, *launch, "-m", "siglightning", *arguments]
    with (folder / f"host-{number}.log").open("w") as log:
        return subprocess.Popen(command, env=environment(GLOO_SOCKET_IFNAME=cable), stdout=log, stderr=log, cwd=folder)


def finish(processes, folder):
    """Exit codes and outputs."""
    codes = [process.wait() for process in processes]
    return codes, [(folder / f"host-{number}.log").read_text() for number in range(len(processes))]


def wait_until(condition):
    """Poll; generously, since the machine may be busy."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_waiting(host):
    """Whether torchrun listens on a host for the other one."""
    return ":29511" in sh(f"ip netns exec {host} ss -ltn")


@pytest.fixture
def arguments(tmp_path):
    """Of a fit on both hosts, but for its directory."""
    (tmp_path / "small.yaml").write_text(CONFIG)
    common = ["fit", "--config", "quickstart", "--config", str(tmp_path / "small.yaml"), "--test_after_fit=false"]
    return [*common, "--trust_imports", "faulty", f"--trainer.strategy={STRATEGY}"]


TWO = ["--trainer.devices=1", "--trainer.num_nodes=2"]


def last_weights(run_dir):
    return torch.load(run_dir / "checkpoints" / "step-00000004.ckpt", weights_only=True)["state_dict"]


def assert_weights_of_one(arguments, folder):
    assert main([*arguments, "--run_dir", str(folder / "one"), "--trainer.strategy=auto"]) == 0
    two, one = (last_weights(folder / name) for name in ("two", "one"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-12, rtol=0)  # fp64: some roundings of weights of order 1


def test_the_second_host_comes_late(hosts, arguments, tmp_path, observe):
    """The first one waits; then both train the weights of one host."""
    command = [*arguments, *TWO, "--run_dir", str(tmp_path / "two")]
    first = start_on(hosts, 0, command, tmp_path)
    wait_until(lambda: is_waiting(hosts[0][0]))
    late = time.monotonic()
    codes, outputs = finish([first, start_on(hosts, 1, command, tmp_path)], tmp_path)
    seconds = time.monotonic() - late
    assert codes == [0, 0], "\n".join(outputs)
    assert_weights_of_one(arguments, tmp_path)
    observe(
        "two hosts (network namespaces), the second late",
        expected="the first waits; weights of one host",
        observed="began when the first had been waiting; weights within 1e-12 of one host's (fp64)",
        seconds=seconds,
    )


@pytest.mark.slow
def test_the_second_host_never_comes(hosts, arguments, tmp_path, observe):
    begun = time.monotonic()
    command = [*arguments, *TWO, "--run_dir", str(tmp_path / "two")]
    (code,), (output,) = finish([start_on(hosts, 0, command, tmp_path, "--rdzv_conf=timeout=20")], tmp_path)
    assert code == 1, output
    assert "1/2 clients joined" in output
    assert not (tmp_path / "two").exists()
    observe(
        "two hosts, the second never comes, torchrun --rdzv_conf timeout=20",
        expected="ends after the time-out and says who is missing; nothing is left",
        observed='exit code 1: "1/2 clients joined"; no run directory',
        seconds=time.monotonic() - begun,
    )


@pytest.mark.slow
def test_the_link_is_cut_in_mid_run(hosts, arguments, tmp_path, observe):
    """Both hosts end; once there is a link again, the same command goes on to the undisturbed weights."""
    note = tmp_path / "cut here"
    block = callback("WaitForCut", rank=1, step=3, note=str(note))
    command = [*arguments, *TWO, "--run_dir", str(tmp_path / "two"), "--checkpoint.every_n_steps=2"]
    processes = [start_on(hosts, number, [*command, block], tmp_path) for number in (0, 1)]
    wait_until(note.exists)
    sh(f"ip -n {hosts[0][0]} link set {hosts[0][1]} down")
    note.unlink()
    cut = time.monotonic()
    codes, outputs = finish(processes, tmp_path)
    seconds = time.monotonic() - cut
    assert codes == [1, 1], "\n".join(outputs)
    assert "did not" in outputs[0], outputs[0]
    assert json.loads((tmp_path / "two" / "exit.json").read_text())["exit_code"] == 4
    sh(f"ip -n {hosts[0][0]} link set {hosts[0][1]} up")
    codes, outputs = finish([start_on(hosts, number, command, tmp_path) for number in (0, 1)], tmp_path)
    assert codes == [0, 0], "\n".join(outputs)
    assert "from step 2" in outputs[0]
    assert_weights_of_one(arguments, tmp_path)
    observe(
        "two hosts, the link cut in step 3",
        expected="both end within the time-outs, exit code 4; resumable",
        observed="both ended, exit.json says 4; resumed from step 2 to the weights of one host (1e-12, fp64)",
        seconds=seconds,
    )
