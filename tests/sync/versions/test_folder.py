"""Weight versions in a folder: published whole or not at all, every byte checked, none removed under a reader."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from verst.sync.files.tensor_checksum import tensor_bytes
from verst.sync.formats import Fp8
from verst.sync.versions import folder as disk
from verst.sync.versions import leases
from verst.sync.versions import removal as disk_removal
from verst.sync.versions.folder import folder_of, read_index, versions
from verst.sync.versions.reader import open_version
from verst.sync.versions.removal import keep_newest
from verst.sync.versions.writer import VersionWriter, publish

Tensors = dict[str, torch.Tensor]


def weights(seed: int, count: int = 6) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    made = {f"layers.{i}.weight": torch.randn(40, 30, generator=generator).bfloat16() for i in range(count)}
    made["scale"] = torch.tensor(float(seed))
    made["empty"] = torch.zeros(0, 4)
    return made


def stepped(old: Tensors, seed: int) -> Tensors:
    """A few weights one unit in the last place further; one tensor as it was, one all new."""
    new = {}
    for i, (name, tensor) in enumerate(old.items()):
        if name == "layers.0.weight":
            new[name] = tensor
        elif name == "layers.1.weight":
            new[name] = -tensor + 1
        elif tensor.dtype == torch.bfloat16:
            bits = tensor.view(torch.int16).clone()
            bits.view(-1)[(seed + i) % 7 :: 50] += 1
            new[name] = bits.view(torch.bfloat16)
        else:
            new[name] = tensor + 1
    return new


def write(
    root: Path, version: int, tensors: Tensors, old: Tensors | None = None, base: int | None = None
) -> None:
    """By two writers with small shards."""
    for writer in (0, 1):
        out = VersionWriter(root, version, f"trainer-{writer}", base, shard_bytes=5000)
        for i, (name, tensor) in enumerate(tensors.items()):
            if i % 2 == writer:
                out.add(name, tensor, None if old is None else old[name])
        out.finish()


def put(
    root: Path, version: int, tensors: Tensors, old: Tensors | None = None, base: int | None = None
) -> None:
    write(root, version, tensors, old, base)
    publish(root, version, ["trainer-0", "trainer-1"])


def equal(root: Path, version: int, tensors: Tensors) -> None:
    with open_version(root, version) as reader:
        reader.verify()
        assert reader.index.tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            read = reader.tensor(name)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert tensor_bytes(read) == tensor_bytes(tensor)


def test_a_version_is_there_when_it_is_published_and_whole(tmp_path):
    tensors = weights(1)
    write(tmp_path, 3, tensors)
    assert versions(tmp_path) == []
    with pytest.raises(ValueError, match="no published version"):
        open_version(tmp_path)
    index = publish(tmp_path, 3, ["trainer-0", "trainer-1"], {"quant_method": "fp8"})
    assert versions(tmp_path) == [3]
    assert read_index(tmp_path, 3) == index
    assert (index.format, index.base) == ({"quant_method": "fp8"}, None)
    assert len({entry.file for entry in index.tensors.values()}) == 4
    equal(tmp_path, 3, tensors)


def test_the_newest_is_what_late_joiners_get(tmp_path):
    for version in (9, 10, 100):
        put(tmp_path, version, weights(version, 2))
    with open_version(tmp_path) as reader:
        assert reader.version == 100
    with pytest.raises(ValueError, match=r"no published version 11; it has \[9, 10, 100\]"):
        open_version(tmp_path, 11)


def test_a_part_of_another_node_may_show_late(tmp_path):
    write(tmp_path, 1, weights(1))
    part = folder_of(tmp_path, 1) / "parts/trainer-1.json"
    hidden = part.rename(tmp_path / "hidden")
    shows = threading.Timer(0.3, hidden.rename, [part])
    shows.start()
    publish(tmp_path, 1, ["trainer-0", "trainer-1"], timeout_s=30)
    shows.join()
    equal(tmp_path, 1, weights(1))
    write(tmp_path, 2, weights(2))
    (folder_of(tmp_path, 2) / "parts/trainer-1.json").unlink()
    with pytest.raises(ValueError, match="no part of trainer-1"):
        publish(tmp_path, 2, ["trainer-0", "trainer-1"], timeout_s=0.2)


def test_writers_are_accounted_for(tmp_path):
    write(tmp_path, 1, weights(1))
    with pytest.raises(ValueError, match="no part of trainer-2"):
        publish(tmp_path, 1, ["trainer-0", "trainer-1", "trainer-2"])
    with pytest.raises(ValueError, match="a part of trainer-1, which is not a writer"):
        publish(tmp_path, 1, ["trainer-0"])
    again = VersionWriter(tmp_path, 1, "trainer-1")
    again.add("scale", torch.tensor(1.0))
    again.add("layers.0.weight", torch.zeros(3))
    with pytest.raises(ValueError, match=r"has written scale already"):
        again.add("scale", torch.tensor(1.0))
    again.finish()
    with pytest.raises(
        ValueError, match=r"layers.0.weight was written by trainer-1 and also in trainer-0-0000\d.safetensors"
    ):
        publish(tmp_path, 1, ["trainer-0", "trainer-1"])
    write(tmp_path, 1, weights(1))  # what an earlier attempt left is replaced
    publish(tmp_path, 1, ["trainer-0", "trainer-1"])
    equal(tmp_path, 1, weights(1))
    for refused in (lambda: publish(tmp_path, 1, []), lambda: VersionWriter(tmp_path, 1, "trainer-0")):
        with pytest.raises(FileExistsError, match="version 1 is published already"):
            refused()
    with pytest.raises(ValueError, match="is not a name"):
        VersionWriter(tmp_path, 2, "../trainer")


def test_what_is_added_may_change_afterwards(tmp_path):
    tensor = torch.ones(10)
    writer = VersionWriter(tmp_path, 1, "w")
    writer.add("a", tensor)
    tensor.zero_()
    writer.finish()
    publish(tmp_path, 1, ["w"])
    equal(tmp_path, 1, {"a": torch.ones(10)})


@pytest.mark.parametrize("name", ["layers.2.weight", "scale"])
def test_damage_is_told_by_tensor_and_file(tmp_path, name):
    tensors = weights(1)
    put(tmp_path, 1, tensors)
    entry = read_index(tmp_path, 1).tensors[name]
    path = folder_of(tmp_path, 1) / entry.file
    data = bytearray(path.read_bytes())
    at = bytes(data).index(bytes(tensor_bytes(tensors[name])))
    data[at + 1] ^= 4
    path.write_bytes(data)
    with open_version(tmp_path) as reader:
        with pytest.raises(ValueError, match=rf"{name} of version 1 in .*{entry.file}: damaged"):
            reader.tensor(name)
        with pytest.raises(ValueError, match="is damaged") as caught:
            reader.verify()
        assert str(caught.value).count("\n") == 1  # this tensor alone
        assert torch.equal(reader.tensor("layers.0.weight"), tensors["layers.0.weight"])
    path.write_bytes(data[:-1])
    with open_version(tmp_path) as reader, pytest.raises(ValueError, match=r"safetensors"):
        reader.verify()
    path.unlink()
    with open_version(tmp_path) as reader, pytest.raises(ValueError, match=entry.file):
        reader.verify()


def test_a_damaged_index_is_told(tmp_path):
    put(tmp_path, 1, weights(1))
    path = folder_of(tmp_path, 1) / "index.json"
    good = path.read_bytes()
    for bad in (good.replace(b'"version":1', b'"version":2'), good[:50], b"{}"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"index.json is damaged"):
            open_version(tmp_path)
    path.write_bytes(good)
    equal(tmp_path, 1, weights(1))
    assert not list((folder_of(tmp_path, 1) / "leases").iterdir())


def test_a_version_of_deltas(tmp_path):
    first = weights(1, count=20)
    second = stepped(first, 2)
    third = stepped(second, 3)
    put(tmp_path, 1, first)
    put(tmp_path, 2, second, first, base=1)
    put(tmp_path, 3, third, second, base=2)
    index = read_index(tmp_path, 3)
    assert index.base == 2
    told = {name for name, entry in index.tensors.items() if entry.start is not None}
    assert "layers.5.weight" in told
    assert "layers.0.weight" in told
    assert "layers.1.weight" not in told
    equal(tmp_path, 3, third)  # through both bases
    with open_version(tmp_path) as reader:  # by who holds the base already
        for name, tensor in third.items():
            assert torch.equal(reader.tensor(name, second[name]), tensor)
        with pytest.raises(ValueError, match=r"layers.5.weight of version 3 in .*deltas: .*another version"):
            reader.tensor("layers.5.weight", first["layers.5.weight"])
    size = [sum(f.stat().st_size for f in folder_of(tmp_path, v).glob("trainer-*")) for v in (1, 2)]
    assert size[1] < size[0] / 2


def test_deltas_need_a_published_base(tmp_path):
    with pytest.raises(ValueError, match="no published version 7"):
        VersionWriter(tmp_path, 8, "w", base=7)
    with pytest.raises(ValueError, match="a: cannot write changes"):
        VersionWriter(tmp_path, 8, "w").add("a", torch.ones(3), torch.ones(3))


def test_damage_in_a_delta_is_told(tmp_path):
    first = weights(1)
    put(tmp_path, 1, first)
    put(tmp_path, 2, stepped(first, 2), first, base=1)
    entry = read_index(tmp_path, 2).tensors["layers.4.weight"]
    assert entry.start is not None
    path = folder_of(tmp_path, 2) / entry.file
    data = bytearray(path.read_bytes())
    data[entry.start + entry.length - 1] ^= 1
    path.write_bytes(data)
    with open_version(tmp_path) as reader:
        with pytest.raises(ValueError, match=rf"layers.4.weight of version 2 in .*{entry.file}"):
            reader.tensor("layers.4.weight")
        with pytest.raises(ValueError, match="is damaged") as caught:
            reader.verify()
    assert str(caught.value).count("\n") == 1


def test_old_versions_go_but_those_needed(tmp_path):
    all_weights = {1: weights(1)}
    put(tmp_path, 1, all_weights[1])
    for version in range(2, 8):
        old = all_weights[version - 1]
        all_weights[version] = stepped(old, version)
        chained = version in (2, 6, 7)  # 7 needs 6 needs 5; 2 needs 1
        put(
            tmp_path,
            version,
            all_weights[version],
            old if chained else None,
            version - 1 if chained else None,
        )
    write(tmp_path, 0, weights(0))  # never published
    write(tmp_path, 8, weights(8))  # being written
    assert keep_newest(tmp_path, 1) == [4, 3, 2, 1, 0]
    assert versions(tmp_path) == [5, 6, 7]
    assert folder_of(tmp_path, 8).is_dir()
    equal(tmp_path, 7, all_weights[7])
    with pytest.raises(ValueError, match="at least the newest"):
        keep_newest(tmp_path, 0)


def test_what_is_read_stays_with_its_bases(tmp_path):
    first, second = weights(1), stepped(weights(1), 2)
    put(tmp_path, 1, first)
    put(tmp_path, 2, second, first, base=1)
    with open_version(tmp_path) as reader:
        for version in (3, 4):
            put(tmp_path, version, weights(version))
        assert keep_newest(tmp_path, 1) == [3]
        for name, tensor in second.items():
            assert tensor_bytes(reader.tensor(name)) == tensor_bytes(tensor)
    assert keep_newest(tmp_path, 1) == [2, 1]


def test_a_reader_that_died_holds_nothing_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "CLOCK_SLACK_S", 0.0)
    put(tmp_path, 1, weights(1))
    reader = open_version(tmp_path, lease_s=0.3)
    put(tmp_path, 2, weights(2))
    assert keep_newest(tmp_path, 1) == []
    time.sleep(0.4)
    reader.renew(0.3)
    assert keep_newest(tmp_path, 1) == []
    time.sleep(0.4)  # and now it is dead
    assert keep_newest(tmp_path, 1) == [1]
    reader.close()


def test_a_removal_that_broke_off_is_taken_up_or_taken_back(tmp_path):
    put(tmp_path, 1, weights(1))
    leases.mark(folder_of(tmp_path, 1))
    with pytest.raises(TimeoutError, match="before one could be opened"):
        open_version(tmp_path, timeout_s=0.2)
    keep_newest(tmp_path, 1)
    equal(tmp_path, 1, weights(1))


def test_an_engine_can_load_a_version_as_a_model_folder(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_text("not to be copied")
    made = Fp8().tensors("layers.0.weight", weights(1)["layers.0.weight"])
    put(tmp_path / "w", 1, made)
    folder = folder_of(tmp_path / "w", 1)
    assert not (folder / "config.json").exists()
    put_two = weights(2)
    write(tmp_path / "w", 2, put_two)
    publish(tmp_path / "w", 2, ["trainer-0", "trainer-1"], companions=model)
    folder = folder_of(tmp_path / "w", 2)
    assert (folder / "tokenizer.json").is_file()
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(set(weight_map.values())) == sorted(p.name for p in folder.glob("*.safetensors"))
    for name, tensor in put_two.items():
        with safe_open(folder / weight_map[name], framework="pt") as file:
            assert tensor_bytes(file.get_tensor(name)) == tensor_bytes(tensor)


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["verst.sync.versions.removal"])
    return context


def _write_for_ever(root: Path, version: int, told: Connection) -> None:
    while True:
        writer = VersionWriter(root, version, "w", shard_bytes=1 << 20)
        for i in range(8):
            writer.add(f"t{i}", torch.full((300_000,), version * 10 + i, dtype=torch.int32))
        writer.finish()
        publish(root, version, ["w"])
        told.send(version)
        version += 1


def test_a_writer_killed_anywhere_leaves_only_whole_versions(tmp_path, processes):
    start = 1
    for attempt in range(4):
        here, there = processes.Pipe()
        child = processes.Process(target=_write_for_ever, args=(tmp_path, start, there))
        child.start()
        assert here.poll(60)
        assert here.recv() == start
        time.sleep(0.02 * attempt)
        child.kill()
        child.join(timeout=30)
        with open_version(tmp_path) as reader:
            assert reader.version >= start
            reader.verify()
            assert int(reader.tensor("t3")[7]) == reader.version * 10 + 3
            start = reader.version + 1  # it may have begun this one: the next writer takes it over
        keep_newest(tmp_path, 1)


def _publish_many(root: Path, count: int) -> None:
    for version in range(1, count + 1):
        writer = VersionWriter(root, version, "w")
        writer.add("t", torch.full((1000,), version))
        writer.finish()
        publish(root, version, ["w"])
        keep_newest(root, 1)


def test_readers_never_meet_a_version_going_away(tmp_path, processes):
    """A publisher that keeps one version only, against readers that open the newest over and over."""
    writer = processes.Process(target=_publish_many, args=(tmp_path, 30))
    writer.start()
    seen: list[int] = []
    faults: list[BaseException] = []

    def read() -> None:
        last = 0
        deadline = time.monotonic() + 60
        try:
            while last < 30 and time.monotonic() < deadline:
                if not versions(tmp_path):
                    time.sleep(0.01)
                    continue
                with open_version(tmp_path) as reader:
                    assert reader.version >= last
                    last = reader.version
                    assert reader.tensor("t").tolist() == [last] * 1000
                    seen.append(last)
        except BaseException as error:  # told by the main thread
            faults.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=90)
    writer.join(timeout=30)
    assert faults == []
    assert writer.exitcode == 0
    assert seen.count(30) >= 3
    assert len(set(seen)) > 5
    keep_newest(tmp_path, 1)
    assert versions(tmp_path) == [30]


def test_a_reading_that_missed_the_one_that_goes_and_the_one_that_comes_is_repeated(tmp_path, monkeypatch):
    """Listing a folder is not atomic: between its entries one version may go and the next come."""
    assert disk.newest(tmp_path) is None, "nothing was ever there"
    for version in (1, 2):
        put(tmp_path, version, weights(version))
    keep_newest(tmp_path, 1)
    readings = iter([[], [1], [2]])
    monkeypatch.setattr(disk, "versions", lambda root: next(readings))
    assert disk.newest(tmp_path) == 2


def test_a_reader_that_comes_between_look_and_removal_is_turned_away(tmp_path, monkeypatch):
    """The remover has found no lease; whoever comes now must not believe that the version stays."""
    for version in (1, 2):
        put(tmp_path, version, weights(version))
    turned_away = []

    def look(folder: Path) -> bool:
        held = leases.leased(folder)
        with pytest.raises(TimeoutError):
            open_version(tmp_path, 1, timeout_s=0.1)
        turned_away.append(folder)
        return held

    monkeypatch.setattr(disk_removal, "leased", look)
    assert keep_newest(tmp_path, 1) == [1]
    assert turned_away == [folder_of(tmp_path, 1)]
