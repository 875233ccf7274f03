"""A real Slurm on this machine: a controller and three nodes, each a host of its own.

`n1` and `n2` have no GPUs and are the default partition; jobs of the partition `urgent` take them
away from others. `n3` has eight that Slurm believes in
(character devices), which is enough for requests, allocation and CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.support.hosts import Host, Network
from tests.support.runs import records

ADDRESSES = {"ctl": "10.77.0.1", "n1": "10.77.0.11", "n2": "10.77.0.12", "n3": "10.77.0.13"}

SOURCE = {
    "SOURCE": "synthetic:?classes=6&per_class=400&seed=3",
    "QUICKDRAW_SHARD__DRAWINGS_PER_SHARD": "200",
    "QUICKDRAW_SHARD__BLOCK": "32",
    "QUICKDRAW_SHARD__GROUP_SHARDS": "2",
}
"""Environment of slurm/shard.sh in tests: 2,400 drawings, 2,160 of them for training."""

# No systemd, no cgroups, no accounting database: the settings that make that possible.
_CONF = """\
ClusterName=test
SlurmctldHost=ctl
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,requeue_setup_env_fail
SwitchType=switch/none
ReturnToService=2
KillWait=25
OverTimeLimit=0
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/ctl.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] CPUs=8 RealMemory=16000 State=UNKNOWN
NodeName=n3 CPUs=32 RealMemory=64000 Gres=gpu:h100:8 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE GraceTime=60 State=UP
PartitionName=urgent Nodes=n[1-2] PriorityTier=10 State=UP
PartitionName=gpu Nodes=n3 MaxTime=INFINITE State=UP
"""

_GRES = "NodeName=n3 Name=gpu Type=h100 Flags=nvidia_gpu_env File={folder}/nvidia[0-7]\n"

_CONTROLLER = """set -e
munged --foreground --force --key-file="$0/munge.key" --socket="$0/munge.socket" \
  --pid-file="$0/munge.pid" --log-file="$0/munge.log" --seed-file="$0/munge.seed" &
exec slurmctld -D -c"""

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED"}


class Slurm:
    """A running cluster; jobs are submitted in `repository`, as by a user."""

    def __init__(self, folder: Path, repository: Path) -> None:
        """Start the cluster and wait until all nodes are idle."""
        self.folder, self.repository = folder, repository
        (folder / "slurm.conf").write_text(_CONF.format(folder=folder))
        (folder / "gres.conf").write_text(_GRES.format(folder=folder))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        folder.chmod(0o755)  # munge wants its socket reachable for all
        for number in range(8):
            os.mknod(folder / f"nvidia{number}", 0o020666, os.makedev(1, 3))
        (folder / "state").mkdir()
        self._environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._network = Network(folder, ADDRESSES)
        self.login = self._host("ctl", "bash", "-c", _CONTROLLER, str(folder))
        self.nodes = {name: self._node(name) for name in ("n1", "n2", "n3")}
        self._until("idle", *self.nodes)

    def close(self) -> None:
        """End all hosts and remove the network."""
        for host in (*self.nodes.values(), self.login):
            host.close()
        self._network.close()

    def _host(self, name: str, *command: str) -> Host:
        log = self.folder / f"{name}.log"
        return Host(self._network, name, command, log=log, environment=self._environment)

    def _node(self, name: str) -> Host:
        return self._host(name, "slurmd", "-D", "-N", name)

    def _until(self, state: str, *names: str) -> None:
        """Wait until these nodes are in a state, and the controller answers."""
        states = f"$(sinfo -h -N -n {','.join(names)} -o %T 2>&1 | sort -u)"
        self.run("bash", "-c", f'until [ "{states}" = {state} ]; do sleep 0.1; done')

    def lose(self, name: str) -> None:
        """Take a node's power and tell Slurm, as an operator does; its own timeout is 5 minutes."""
        self.nodes[name].die()
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")

    def replace(self, name: str) -> None:
        """Switch a lost node on again."""
        self.nodes[name] = self._node(name)
        self._until("idle", name)

    def run(self, *command: str, **environment: str) -> str:
        """Return the output of a command on the login node."""
        return self.login.run(
            *command, environment=self._environment | environment, folder=self.repository
        )

    def submit(self, *arguments: str, **environment: str) -> str:
        """`sbatch ARGUMENTS`; returns the job's number."""
        return self.run("sbatch", "--parsable", *arguments, **environment).strip()

    def show(self, job: str) -> dict[str, str]:
        """Return what Slurm shows of a job, such as JobState, ExitCode and Restarts."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(field.split("=", 1) for field in text.split() if "=" in field)

    def said(self, job: str) -> str:
        """Return the output of a job so far."""
        path = self.repository / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str) -> dict[str, str]:
        """Wait for a job's end; a requeued job starts soon instead of two minutes later."""
        hurried = ""
        while True:
            state = self.show(job)
            if state["JobState"] in ENDED:
                return state
            waits = state["JobState"] == "PENDING" and state["Reason"] == "BeginTime"
            if waits and state["Restarts"] != hurried:
                hurried = state["Restarts"]
                # Not at once: a start in the second of the end before it is taken for that one.
                self.run("scontrol", "update", f"jobid={job}", "StartTime=now+3")
            time.sleep(0.2)

    def completes(self, job: str) -> dict[str, str]:
        """Wait for a job that must end well."""
        state = self.wait(job)
        assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), self.said(job)
        return state

    def wait_until(self, job: str, state: str) -> None:
        """Wait until Slurm has a job in a state."""
        while self.show(job)["JobState"] != state:
            time.sleep(0.2)

    def wait_for(self, job: str, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; the job must not end before."""
        while not condition():
            state = self.show(job)["JobState"]
            assert state not in ENDED, f"{state}:\n{self.said(job)}"
            time.sleep(0.05)

    def wait_for_text(self, job: str, text: str) -> None:
        """Wait until a job has printed something."""
        self.wait_for(job, lambda: text in self.said(job))

    def wait_for_step(self, job: str, output: str, step: int) -> None:
        """Wait until a job's run has logged a step."""
        run = self.repository / output
        self.wait_for(job, lambda: any(r["step"] >= step for r in records(run, "train")))
