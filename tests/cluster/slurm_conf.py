"""The cluster's configuration files: slurm.conf and what it needs, from a few options."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.instances import Instance

CPUS = 8
MEMORY_MB = 64_000
GPUS = 4


@dataclass(frozen=True)
class Options:
    """What tests may want otherwise. Times are in seconds, and Slurm looks at most of them only now and then."""

    # With slurmdbd and MariaDB, so that sacct answers.
    accounting: bool = False
    # Whether it holds users to the limits of their QOS, with accounting.
    limits: bool = False
    # A silent node is down after this long, and up to 15 s more.
    slurmd_timeout: int = 15
    # From SIGTERM to SIGKILL.
    kill_wait: int = 10
    # From a preemption's first signal to its SIGTERM; polled, so 5 s end after 13 or 14.
    grace_time: int = 60
    # Whether a job's --signal comes at the beginning of a preemption; else SIGTERM does.
    signal_preemption: bool = True
    # How long squeue and scontrol know a finished job.
    min_job_age: int = 3600


SLURM_CONF = """\
ClusterName={prefix}
SlurmctldHost={host}({login})
SlurmctldPort={ctld_port}
SlurmdPort=6818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job is held for cred_expire and a second.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdTimeout={slurmd_timeout}
KillWait={kill_wait}
MinJobAge={min_job_age}
JobRequeue=1
SlurmdParameters=config_overrides
{signals}
DependencyParameters=kill_invalid_depend
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
GresTypes=gpu
{accounting}
NodeName={prefix}node[1-{count}] NodeAddr={addresses} CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}
PartitionName=low Nodes=ALL Default=YES MaxTime=UNLIMITED PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_time}
PartitionName=cancelled Nodes=ALL MaxTime=UNLIMITED PriorityTier=1 PreemptMode=CANCEL GraceTime={grace_time}
PartitionName=high Nodes=ALL MaxTime=UNLIMITED PriorityTier=10 PreemptMode=OFF
"""

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={login}
AccountingStoragePort={port}
# Without it slurmctld dies: it would ask munge's usual socket.
AccountingStoragePass={folder}/munge.socket
AccountingStorageTRES=gres/gpu"""


def write(instance: Instance, options: Options, dbd_port: int | None) -> None:
    """Fill the cluster's folder with all that its daemons read, and with the GPUs that its nodes pretend to have."""
    folder = Path(instance.folder)
    for name in ("state", "spool", "log", "dev", "home"):
        (folder / name).mkdir()
    accounting = "AccountingStorageType=accounting_storage/none"
    if dbd_port is not None:
        accounting = ACCOUNTING.format(login=instance.login_address, port=dbd_port, folder=folder)
        if options.limits:
            accounting += "\nAccountingStorageEnforce=limits,qos"
    text = SLURM_CONF.format(
        prefix=instance.prefix,
        host=socket.gethostname(),
        login=instance.login_address,
        ctld_port=free_port(instance),
        folder=folder,
        accounting=accounting,
        count=len(instance.nodes),
        addresses=f"10.213.{instance.number}.[1-{len(instance.nodes)}]",
        cpus=CPUS,
        memory=MEMORY_MB,
        gpus=GPUS,
        slurmd_timeout=options.slurmd_timeout,
        kill_wait=options.kill_wait,
        min_job_age=options.min_job_age,
        grace_time=options.grace_time,
        signals="SlurmctldParameters=preempt_send_user_signal" if options.signal_preemption else "",
    )
    Path(instance.slurm_conf).write_text(text)
    _write_gpus(folder)
    # Slurm loads a cgroup plugin though nothing here uses it; this one does not ask what the machine has mounted.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)


def _write_gpus(folder: Path) -> None:
    """With anything but character devices, Slurm grants GPUs and does not set CUDA_VISIBLE_DEVICES."""
    for index in range(GPUS):
        path = folder / "dev" / f"nvidia{index}"
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        path.chmod(0o666)
    files = f"{folder}/dev/nvidia[0-{GPUS - 1}]"
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={files}\n")


def free_port(instance: Instance, offset: int = 0) -> int:
    """For a daemon that listens on every address of the host, which all clusters share.

    Not an ephemeral port, which an outgoing connection could take before the daemon does; by the cluster's number,
    so no other cluster picks it meanwhile.
    """
    for base in range(20_000, 30_000, 1000):
        port = base + 2 * instance.number + offset
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port for {instance.prefix} from 20000 to 30000")
