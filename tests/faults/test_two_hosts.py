"""Two hosts that share nothing but a cable: network namespaces joined by a veth pair, with torchrun on each."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

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


def torchrun_on(hosts, arguments, folder):
    """Start torchrun on both hosts and wait; returns their outputs. Rank r is the process of host r."""
    processes = []
    for number, (name, cable) in enumerate(hosts):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
        launch += [f"--node_rank={number}", f"--master_addr={ADDRESSES[0]}", "--master_port=29511"]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": cable, "OMP_NUM_THREADS": "1"}
        command = ["ip", "netns", "exec", name, *launch, "-m", "siglightning", *arguments]
        with (folder / f"host-{number}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder))
    codes = [process.wait() for process in processes]
    outputs = [(folder / f"host-{number}.log").read_text() for number in range(len(hosts))]
    assert codes == [0, 0], "\n".join(outputs)
    return outputs


def last_weights(run_dir):
    return torch.load(run_dir / "checkpoints" / "step-00000004.ckpt", weights_only=True)["state_dict"]


def test_two_hosts_train_the_weights_of_one(hosts, tmp_path):
    (tmp_path / "small.yaml").write_text(CONFIG)
    common = ["fit", "--config", "quickstart", "--config", str(tmp_path / "small.yaml"), "--test_after_fit=false"]
    several = ["--trainer.strategy=ring_ddp", "--trainer.devices=1", "--trainer.num_nodes=2"]
    torchrun_on(hosts, [*common, *several, "--run_dir", str(tmp_path / "two")], tmp_path)
    assert main([*common, "--run_dir", str(tmp_path / "one")]) == 0
    two, one = (last_weights(tmp_path / name) for name in ("two", "one"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-12, rtol=0)  # fp64: some roundings of weights of order 1
