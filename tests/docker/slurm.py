"""A Slurm of this machine alone: two nodes of one host, run by daemons that are started and ended here."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo", "squeue")
SYSTEM = "/usr/sbin:/sbin"  # where daemons lie, which is not on everybody's path
PATIENCE_S = 600
NODES = ("127.0.0.1", "127.0.0.2")  # one address of this host each; the processes meet at the first node of a step

CONF = """
ClusterName=small
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PlugStackConfig={folder}/plugstack.conf
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=127.0.0.[1-2] NodeHostname={host} Port=[{ports[1]}-{ports[2]}] CPUs=32 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES = "Name=gpu File=/dev/tty[0-7]\n"  # any eight files: the template asks for GPUs, and nothing opens them


class Slurm:
    """The daemons and their folder; ``path`` is where programs are looked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, []
        # The batch scripts run here with this process's environment, without what an outer Slurm has put into it.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", ""), SYSTEM])
        self.environment = kept | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "WANDB_MODE": "offline"}

    def missing(self):
        """Programs that this machine lacks."""
        return [name for name in PROGRAMS if shutil.which(name, path=self.environment["PATH"]) is None]

    def begin(self):
        """Start the daemons; afterwards both nodes are idle, or ``TimeoutError`` says what they wrote."""
        (self.folder / "state").mkdir()
        (self.folder / "plugstack.conf").touch()
        (self.folder / "gres.conf").write_text(GRES)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        names = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser()}
        (self.folder / "slurm.conf").write_text(CONF.format(folder=self.folder, ports=free_ports(), **names))
        munge = [f"--{name}={self.folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *munge)
        self._until((self.folder / "munge.socket").exists)
        self._start("slurmctld", "-D")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        self._until(lambda: self.ask("sinfo", "-h", "-o", "%T %D") == f"idle {len(NODES)}")

    def _start(self, program, *arguments):
        with (self.folder / "daemons.log").open("a") as log:
            command = [shutil.which(program, path=self.environment["PATH"]), *arguments]
            self.started.append(
                subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log)
            )

    def end(self):
        """End the jobs of this Slurm, then its daemons, the last one first."""
        if all(process.poll() is None for process in self.started):
            for job in self.ask("squeue", "-h", "-o", "%i").split():
                self.ask("scancel", job)
            self._until(lambda: not self.ask("squeue", "-h", "-o", "%i"))
        for process in reversed(self.started):
            process.terminate()
            process.wait()

    def ask(self, *command):
        """What a command of Slurm prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def submit(self, folder, *arguments, **more):
        """``sbatch`` in ``folder``; the job's number. The log of the job is ``slurm-NUMBER.out`` there."""
        command = ["sbatch", "--parsable", *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment | more, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job):
        """The state of a job, as ``scontrol show job`` says it."""
        words = self.ask("scontrol", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def wait(self, job, restarts=0):
        """Wait until a job has ended, or waits to run for the so many-th time again; gives ``state``."""
        self._until(lambda: self._has_come_to(self.state(job), str(restarts)))
        return self.state(job)

    def _has_come_to(self, state, restarts):
        waits_again = restarts != "0" and (state["JobState"], state["Restarts"]) == ("PENDING", restarts)
        return waits_again or state["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def run_again_soon(self, job):
        """Slurm lets a job that is queued again wait for two minutes; at once its nodes would still refuse it."""
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now+15")

    def _until(self, condition):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.started):
                raise TimeoutError((self.folder / "daemons.log").read_text()[-2000:])
            time.sleep(0.2)


def free_ports(count=3):
    """Ports one after the other that nobody listens on at the moment."""
    for first in range(20000, 30000, count):
        with ExitStack() as stack, suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return list(range(first, first + count))
    raise OSError("no free ports between 20000 and 30000")
