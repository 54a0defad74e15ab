"""Transfers hide behind compute: a step over a slow cable takes less than its compute and its transfers one by one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cable import MTU, Cable, open_tun

ADDRESSES = ("10.213.78.1", "10.213.78.2")
DELAY_S = 0.05


def sh(command):
    return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout


@pytest.fixture
def slow_hosts():
    """Two namespaces joined by a cable on which everything takes `DELAY_S`; skips where the machine forbids it."""
    hosts = [f"siglightning-slow-{os.getpid()}-{side}" for side in "ab"]
    descriptors = []
    try:
        for number, (host, address) in enumerate(zip(hosts, ADDRESSES, strict=True)):
            device = f"sigtun{number}"
            sh(f"ip netns add {host}")
            descriptors.append(open_tun(device))
            sh(f"ip link set {device} netns {host}")
            sh(f"ip -n {host} addr add {address} peer {ADDRESSES[1 - number]} dev {device}")
            sh(f"ip -n {host} link set {device} mtu {MTU} up")
            sh(f"ip -n {host} link set lo up")
        cable = Cable(descriptors)
        cable.delay_s = DELAY_S
        yield hosts
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"network namespaces or TUN devices are not allowed here: {error}")
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, check=False)
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.slow  # a timing: it needs the machine to itself
def test_a_step_takes_less_than_compute_and_transfers(slow_hosts):
    """With two ranks texts and one gradient fly behind compute; the last gradient's way home cannot."""
    script = str(Path(__file__).parent / "timed_steps.py")
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, script, str(rank), ADDRESSES[0]],
            env=os.environ | {"GLOO_SOCKET_IFNAME": f"sigtun{rank}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(slow_hosts)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    seconds = json.loads(outputs[0].splitlines()[-1])
    print(seconds)
    assert seconds["transfers"] > 3 * DELAY_S
    exposed = (seconds["step"] - seconds["compute"]) / seconds["transfers"]
    assert exposed < 0.6, seconds  # one transfer of three is to be expected, all of them without overlap
