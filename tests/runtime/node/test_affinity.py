"""Who runs on which CPUs, as promises about any node, and read from the node that the tests run on."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verst.runtime.node.affinity import LEAST_CPUS, Claim, NotEnoughCpus, Place, assign
from verst.runtime.node.processes import place_environment, within_quota
from verst.runtime.node.topology import (
    NumaNode,
    Topology,
    format_cpus,
    parse_bus_ids,
    parse_cpus,
    read_topology,
)
from verst.runtime.run.plan import Pin, Process


def write_sys(
    root: Path, sockets: int, cores: int, gpus: int, threads: int = 2, nics: int = 0
) -> dict[str, str]:
    """sysfs of a node as x86 numbers it: the second hardware threads follow all the first ones."""
    all_cores = sockets * cores
    for socket in range(sockets):
        first = socket * cores
        lists = [f"{first + t * all_cores}-{first + t * all_cores + cores - 1}" for t in range(threads)]
        folder = root / f"devices/system/node/node{socket}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(",".join(lists) + "\n")
    for cpu in range(all_cores * threads):
        folder = root / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        siblings = ",".join(str(cpu % all_cores + t * all_cores) for t in range(threads))
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    buses = {}
    for gpu in range(gpus):
        bus = f"0000:{0x10 + gpu:02x}:00.0"
        folder = root / "bus/pci/devices" / bus
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{gpu * sockets // gpus}\n")
        buses[str(gpu)] = bus
    for nic in range(nics):
        port = root / f"class/infiniband/mlx5_{nic}/ports/1"
        port.mkdir(parents=True)
        (port / "state").write_text("4: ACTIVE\n" if nic != 1 else "1: DOWN\n")
        (port.parents[1] / "device").mkdir()
        (port.parents[1] / "device/numa_node").write_text(f"{nic * sockets // nics}\n")
    return buses


def ranks(count: int, **more) -> list[Claim]:
    return [Claim(f"trainer-{n}", (str(n),), **more) for n in range(count)]


def test_eight_ranks_run_on_whole_cores_of_their_gpus_sockets(tmp_path):
    buses = write_sys(tmp_path, sockets=2, cores=16, gpus=8, nics=4)
    topology = read_topology(range(64), buses, tmp_path)
    places = assign(topology, ranks(8))
    assert places["trainer-0"] == Place((0, 1, 2, 3, 32, 33, 34, 35), (0,), ("mlx5_0:1",))
    assert places["trainer-7"] == Place((28, 29, 30, 31, 60, 61, 62, 63), (1,), ("mlx5_2:1", "mlx5_3:1"))
    assert sorted(cpu for place in places.values() for cpu in place.cpus) == list(range(64))


def test_an_engine_on_gpus_of_both_sockets_runs_on_both(tmp_path):
    buses = write_sys(tmp_path, sockets=2, cores=8, gpus=4)
    topology = read_topology(range(32), buses, tmp_path)
    engine = Claim("rollout-0", ("0", "1", "2", "3"))
    assert assign(topology, [engine])["rollout-0"].cpus == tuple(range(32))
    assert assign(topology, [engine])["rollout-0"].nodes == (0, 1)


def test_a_jobs_part_of_a_node_is_all_there_is(tmp_path):
    buses = write_sys(tmp_path, sockets=2, cores=8, gpus=4, threads=1)
    topology = read_topology([0, 1, 2, 3, 8, 9], buses, tmp_path)
    assert [node.cpus for node in topology.nodes] == [(0, 1, 2, 3), (8, 9)]
    places = assign(topology, [Claim("trainer-0", ("0",)), Claim("trainer-1", ("3",))])
    assert (places["trainer-0"].cpus, places["trainer-1"].cpus) == ((0, 1, 2, 3), (8, 9))
    # All of the job's CPUs are on the other socket than its GPUs: there they run, then.
    far = read_topology([0, 1, 2, 3], buses, tmp_path)
    assert assign(far, [Claim("trainer-0", ("3",))])["trainer-0"].nodes == (0,)


def test_those_that_take_turns_share_and_the_others_do_not(tmp_path):
    topology = Topology((NumaNode(0, ((0,), (1,), (2,), (3,))),))
    in_turns = assign(topology, [Claim("trainer-0"), Claim("rollout-0", turn=1)])
    assert [p.cpus for p in in_turns.values()] == [(0, 1, 2, 3), (0, 1, 2, 3)]
    at_once = assign(topology, [Claim("trainer-0"), Claim("rollout-0")])
    assert [p.cpus for p in at_once.values()] == [(0, 1), (2, 3)]


def test_more_processes_than_cpus_are_not_pinned_and_the_reason_is_told():
    topology = Topology((NumaNode(0, ((0,), (1,), (2,))),))
    with pytest.raises(NotEnoughCpus, match="trainer-1 would get 1 of 3 CPUs but needs 2"):
        assign(topology, [Claim("trainer-0"), Claim("trainer-1")])
    with pytest.raises(NotEnoughCpus, match="of 3 CPUs but needs 4"):
        assign(topology, [Claim("trainer-0", cpus=4)])


def test_stated_cpus_come_first_and_the_rest_is_shared():
    topology = Topology((NumaNode(0, tuple((n,) for n in range(8))),))
    places = assign(topology, [Claim("a"), Claim("b", cpus=1), Claim("c")])
    assert {name: len(place.cpus) for name, place in places.items()} == {"a": 4, "b": 1, "c": 3}


def test_a_kernel_without_numa_has_one_node(tmp_path):
    assert read_topology([3, 5], {}, tmp_path) == Topology((NumaNode(0, ((3,), (5,))),), {}, {})


topologies = st.builds(
    lambda sizes, threads: _topology(sizes, threads),
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(1, 2),
)


def _topology(sizes: list[int], threads: int) -> Topology:
    numbers = itertools.count()
    nodes = tuple(
        NumaNode(n, tuple(tuple(next(numbers) for _ in range(threads)) for _ in range(size)))
        for n, size in enumerate(sizes)
    )
    return Topology(nodes, {str(gpu): gpu % len(sizes) for gpu in range(8)})


claims_of_a_node = st.lists(
    st.tuples(
        st.sets(st.sampled_from("01234567"), max_size=4), st.none() | st.integers(1, 6), st.integers(0, 1)
    ),
    min_size=1,
    max_size=10,
)


@given(topologies, claims_of_a_node)
def test_on_any_node_each_core_has_one_owner_a_turn_and_each_process_what_it_needs(topology, asked):
    claims = [Claim(f"p-{n}", tuple(sorted(g)), c, t) for n, (g, c, t) in enumerate(asked)]
    cores = {core for node in topology.nodes for core in node.cores}
    try:
        places = assign(topology, claims)
    except NotEnoughCpus:
        # One process alone of a turn, that states nothing, always fits where there are two CPUs for it.
        assert len(claims) > 1 or claims[0].cpus or min(len(n.cpus) for n in topology.nodes) < LEAST_CPUS
        return
    assert places.keys() == {claim.name for claim in claims}
    for turn in (0, 1):
        used = [cpu for c in claims if c.turn == turn for cpu in places[c.name].cpus]
        assert len(used) == len(set(used))
    for claim in claims:
        mine = set(places[claim.name].cpus)
        assert len(mine) >= (claim.cpus or LEAST_CPUS)
        assert all(set(core) <= mine or not set(core) & mine for core in cores)  # whole cores
        if claim.gpus:
            assert set(places[claim.name].nodes) <= {topology.gpus[gpu] for gpu in claim.gpus}


@given(st.sets(st.integers(0, 300)))
def test_cpu_lists_read_back(cpus):
    assert set(parse_cpus(format_cpus(cpus))) == cpus


def test_bus_ids_are_as_sysfs_has_them():
    answer = "0, GPU-4af1, 00000000:1B:00.0\n1, GPU-77, 00000000:9D:00.0\n"
    assert parse_bus_ids(answer) == {
        "0": "0000:1b:00.0", "GPU-4af1": "0000:1b:00.0", "1": "0000:9d:00.0", "GPU-77": "0000:9d:00.0",
    }  # fmt: skip


def test_threads_and_nics_follow_from_the_place_unless_they_are_stated():
    place = Place(tuple(range(24)), (0,), ("mlx5_0:1", "mlx5_2:1"))
    process = Process(role="trainer", index=0, argv=[], pin=Pin(near_nics=True), gpus=[0])
    assert place_environment(process, place, {}) == {
        "OMP_NUM_THREADS": "8",
        "NCCL_IB_HCA": "=mlx5_0:1,mlx5_2:1",
        "UCX_NET_DEVICES": "mlx5_0:1,mlx5_2:1",
    }
    stated = {"NCCL_IB_HCA": "mlx5_4", "UCX_NET_DEVICES": "all"}
    assert place_environment(process, place, stated) == {"OMP_NUM_THREADS": "8"}
    engine = Process(role="rollout", index=0, argv=[], pin=Pin(ranks=4))
    assert place_environment(engine, place, {}) == {"OMP_NUM_THREADS": "6"}
    assert place_environment(engine, None, {}) == {"OMP_NUM_THREADS": "1"}


def test_under_a_cpu_quota_processes_get_fewer_threads():
    places = within_quota({"rollout-0": Place(tuple(range(24)), (0,), ())}, cores=48, usable=10)
    engine = Process(role="rollout", index=0, argv=[], pin=Pin(ranks=4))
    assert place_environment(engine, places["rollout-0"], {}) == {"OMP_NUM_THREADS": "1"}
    alone = Process(role="rollout", index=0, argv=[], pin=Pin())
    assert place_environment(alone, places["rollout-0"], {}) == {"OMP_NUM_THREADS": "5"}


def test_this_machine_reads_as_the_cpus_that_we_may_use():
    topology = read_topology(os.sched_getaffinity(0))
    assert {cpu for node in topology.nodes for cpu in node.cpus} == os.sched_getaffinity(0)
