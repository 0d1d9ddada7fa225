"""The test cluster itself is what it says: several machines, real Slurm, real faults, and no trace afterwards."""

from __future__ import annotations

import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import instances, leftovers
from tests.cluster.conftest import StartCluster
from tests.cluster.slow_links import FROM_NODE, Quality
from tests.cluster.slurm_cluster import REPOSITORY, SlurmCluster

BIND = (
    "import socket, sys, time; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
    "s.bind(('', 5000)); s.listen(); print('bound', flush=True); "
)

# A test process that starts a cluster with a job, says so, and waits to be killed.
VICTIM = """
import time
from tests.cluster.slurm_cluster import SlurmCluster
cluster = SlurmCluster()
cluster.start()
job = cluster.sbatch("trap '' TERM; setsid sleep 1000 & sleep 1000", "--nodes=2")
cluster.wait_for_state(job, "RUNNING")
print(cluster.instance.number, flush=True)
time.sleep(1000)
"""


def output_of(cluster: SlurmCluster, script: str, *options: str, user: str | None = None) -> str:
    """What a batch job prints that must complete; the file is in its owner's home."""
    job_id = cluster.sbatch(script, *options, user=user)
    job = cluster.wait_for_state(job_id, "COMPLETED")
    return Path(job["StdOut"]).read_text()


def traces(instance: instances.Instance) -> list[str]:
    """All that there is of a cluster on this machine."""
    named = re.compile(rf"\b{instance.prefix}(?!\d)")
    alive = [f"{place} runs {pids}" for place, pids in leftovers.processes(instance).items() if pids]
    hosts = [line for line in instances.HOSTS.read_text().splitlines() if named.search(line)]
    users = [entry.pw_name for entry in pwd.getpwall() if named.search(entry.pw_name)]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if instance.folder in line]
    files = [str(path) for path in (Path(instance.folder), instance.record) if path.exists()]
    return alive + leftovers.interfaces(instance) + hosts + users + mounts + files


def test_six_idle_nodes_with_names_of_their_own(cluster: SlurmCluster) -> None:
    assert cluster.node_states() == dict.fromkeys(cluster.nodes, "idle")
    names = {cluster.in_node(node, "hostname").stdout.strip() for node in cluster.nodes}
    assert names == set(cluster.nodes)
    assert len(names) == 6


def test_the_same_port_binds_on_two_nodes_and_nodes_reach_each_other(cluster: SlurmCluster) -> None:
    wait = "c, _ = s.accept(); c.close()"
    script = f"""
        srun --ntasks-per-node=1 {sys.executable} -c "{BIND}{wait}" &
        for node in $(scontrol show hostnames); do
            until (exec 3<>/dev/tcp/$node/5000) 2>/dev/null; do sleep 0.1; done
        done
        wait"""
    assert output_of(cluster, script, "--nodes=2").splitlines() == ["bound", "bound"]


SEND = "c, _ = s.accept(); c.sendall(bytes(range(256)) * 40_000); c.close()"


def test_cables_can_be_slow_lossy_clogged_and_deaf(cluster: SlurmCluster) -> None:
    node = cluster.nodes[1]
    host = cluster.instance.address(node)

    def connect_s(timeout: float = 5.0) -> float:
        """To the node's slurmd: from the host to the node and back."""
        began = time.monotonic()
        socket.create_connection((host, 6818), timeout).close()
        return time.monotonic() - began

    with cluster.slow_links() as links:
        connect_s()
        links.set(node, Quality(delay_s=0.2))
        assert connect_s() >= 0.4
        links.set(node, Quality(stalled_s=0.7))
        assert connect_s() >= 0.6
        links.set(node, Quality(loss=1.0, directions=(FROM_NODE,)))
        with pytest.raises(TimeoutError):
            connect_s(0.5)
        # Large frames with unfinished checksums arrive whole, in spite of losses.
        links.set(node, Quality(loss=0.01))
        sender = subprocess.Popen(
            [*cluster._running_network().enter(node), sys.executable, "-c", BIND + SEND],
            stdout=subprocess.PIPE,
        )
        assert sender.stdout is not None
        assert sender.stdout.readline() == b"bound\n"
        with socket.create_connection((host, 5000), 20) as stream:
            received = b"".join(iter(lambda: stream.recv(1 << 20), b""))
        assert sender.wait(20) == 0
        assert received == bytes(range(256)) * 40_000
    assert links.frames["dropped"] > 0
    assert links.frames["held"] > 0
    connect_s(0.5)


def test_a_gang_of_two_nodes_sees_its_node_list(cluster: SlurmCluster) -> None:
    script = "scontrol show hostnames; srun sh -c 'echo $SLURM_PROCID $SLURMD_NODENAME $(hostname)'"
    lines = output_of(cluster, script, "--nodes=2", "--ntasks-per-node=1").splitlines()
    first, second = lines[:2]
    assert {first, second} < set(cluster.nodes)
    assert sorted(lines[2:]) == [f"0 {first} {first}", f"1 {second} {second}"]


def test_a_job_gets_the_gpus_that_it_asks_for(cluster: SlurmCluster) -> None:
    script = "echo ${CUDA_VISIBLE_DEVICES-unset}"
    assert output_of(cluster, script, "--gres=gpu:2").split() == ["0,1"]
    assert "," not in output_of(cluster, script)


def test_an_array_is_in_the_queue_task_by_task(cluster: SlurmCluster) -> None:
    job_id = cluster.sbatch("sleep 60", "--array=0-2", "--nodes=2")
    cluster.wait_for(
        lambda: [line.state for line in cluster.queue("running")] == ["RUNNING"] * 3, "three tasks to run"
    )
    assert {line.id for line in cluster.queue("running")} == {f"{job_id}_{index}" for index in range(3)}
    assert len(cluster.jobs(job_id)) == 3
    assert cluster.job(f"{job_id}_1")["ArrayTaskId"] == "1"


def test_a_killed_node_runs_nothing_and_comes_back(cluster: SlurmCluster) -> None:
    node = cluster.nodes[2]
    job_id = cluster.sbatch("setsid sleep 60 & sleep 60", f"--nodelist={node}")
    cluster.wait_for_state(job_id, "RUNNING")
    cluster.wait_for(lambda: len(cluster.pids_on(node)) >= 4, "slurmd, slurmstepd and the job's processes")
    cluster.kill_node(node)
    assert cluster.pids_on(node) == []
    cluster.run("scancel", job_id)
    cluster.start_node(node)
    cluster.wait_for(lambda: cluster.node_states()[node] == "idle", f"{node} to be idle")
    assert output_of(cluster, "hostname", f"--nodelist={node}").strip() == node


@pytest.mark.long
def test_a_job_is_requeued_when_the_node_of_its_script_has_rebooted(cluster: SlurmCluster) -> None:
    """The job must be 20 s old, or Slurm takes it for one that is just starting."""
    job_id = cluster.sbatch("sleep 600", "--nodes=2")
    node = cluster.wait_for_state(job_id, "RUNNING")["BatchHost"]
    time.sleep(22)
    cluster.kill_node(node)
    cluster.start_node(node)
    cluster.wait_for(lambda: cluster.job(job_id)["Restarts"] == "1", "the requeue", timeout=90)
    cluster.wait_for_state(job_id, "RUNNING")


def test_a_second_user_runs_jobs_beside_roots(cluster: SlurmCluster) -> None:
    with cluster.add_user("alice") as alice:
        roots = cluster.sbatch("sleep 60")
        cluster.wait_for_state(roots, "RUNNING")
        printed = output_of(cluster, "id -un; srun id -un; pwd", user=alice).split()
        assert printed == [alice, alice, str(cluster.home / "alice")]
        assert cluster.run("scancel", roots, user=alice, check=False).returncode != 0
        assert cluster.job(roots)["JobState"] == "RUNNING"


def test_two_clusters_run_side_by_side_and_stop_leaves_no_trace(
    cluster: SlurmCluster, start_cluster: StartCluster
) -> None:
    other = start_cluster()
    job_id = other.sbatch("trap '' TERM; setsid sleep 1000 & sleep 1000")
    other.wait_for_state(job_id, "RUNNING")
    assert sorted(output_of(cluster, "srun hostname", "--nodes=6").split()) == sorted(cluster.nodes)
    assert not set(other.nodes) & set(cluster.nodes)
    instance = other.instance
    assert traces(instance)
    other.stop()
    assert traces(instance) == []
    assert set(cluster.node_states().values()) == {"idle"}


@pytest.mark.parametrize("watchdog_too", [False, True])
def test_a_killed_test_process_leaves_no_trace(watchdog_too: bool, cluster: SlurmCluster) -> None:
    """Its watchdog removes the cluster; if that was killed as well, the next cluster to start does."""
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    victim = subprocess.Popen(
        [sys.executable, "-P", "-c", VICTIM], env=env, stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    number = int(victim.stdout.readline())
    (instance,) = [each for each in instances.recorded() if each.number == number]
    if watchdog_too:
        children = Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split()
        (watchdog,) = [pid for pid in children if b"watchdog" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(watchdog), signal.SIGKILL)
    victim.kill()
    victim.communicate(timeout=10)
    if watchdog_too:
        assert traces(instance)
        leftovers.remove_dead_instances()
    cluster.wait_for(lambda: not traces(instance), f"no trace of {instance.prefix}", timeout=20)


@pytest.mark.long
def test_a_partitioned_node_goes_down_while_its_processes_go_on(cluster: SlurmCluster) -> None:
    node = cluster.nodes[5]
    job_id = cluster.sbatch("sleep 600", f"--nodelist={node}")
    cluster.wait_for_state(job_id, "RUNNING")
    cluster.partition_node(node)
    assert cluster.in_node(node, "hostname").stdout.strip() == node
    cluster.wait_for(lambda: cluster.node_states()[node] == "down*", f"{node} to be down", timeout=60)
    assert cluster.job(job_id)["JobState"] == "PENDING"
    assert len(cluster.pids_on(node)) >= 3
    cluster.heal_node(node)
    cluster.wait_for(lambda: cluster.node_states()[node] != "down*", f"{node} to be back", timeout=60)


@pytest.mark.long
def test_with_accounting_sacct_answers(start_cluster: StartCluster) -> None:
    cluster = start_cluster(accounting=True)
    job_id = cluster.sbatch("true")
    cluster.wait_for_state(job_id, "COMPLETED")
    sacct = [
        "sacct",
        "--allocations",
        "--noheader",
        "--parsable2",
        "--format=JobID,State",
        f"--jobs={job_id}",
    ]
    cluster.wait_for(
        lambda: cluster.run(*sacct).stdout.split() == [f"{job_id}|COMPLETED"], "sacct to know the job"
    )
