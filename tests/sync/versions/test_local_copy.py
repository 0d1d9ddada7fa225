"""A node's copy of a version is that version, bit for bit, or of none: after deltas, damage, a crash half-way."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from tests.sync.versions.test_folder import Tensors, stepped, weights
from verst.sync.files.tensor_checksum import tensor_bytes
from verst.sync.versions import local_copy as module
from verst.sync.versions.folder import folder_of, read_index, versions
from verst.sync.versions.local_copy import LocalCopy, default_place, tensors_in
from verst.sync.versions.reader import open_version
from verst.sync.versions.sender import VersionSender


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def send(sender: VersionSender, version: int, tensors: Tensors) -> int:
    """In two buckets."""
    names = list(tensors)
    return sender.send(version, ((some, [tensors[n] for n in some]) for some in (names[:3], names[3:])))


def history(count: int) -> list[Tensors]:
    made = [weights(0)]
    for seed in range(1, count):
        made.append(stepped(made[-1], seed))
    return made


def assert_holds(copy: LocalCopy, root: Path, version: int, tensors: Tensors) -> None:
    assert copy.version == version
    found = dict(tensors_in(copy.path, read_index(root, version)))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert tensor_bytes(found[name]) == tensor_bytes(tensor), name


def test_deltas_keep_a_copy_up_to_date_and_little_is_read(root, tmp_path):
    sender, copy = VersionSender(root, keep=2, full_every=4), LocalCopy(tmp_path)
    written, read = [], []
    for version, tensors in enumerate(history(9), start=1):
        written.append(send(sender, version, tensors))
        read.append(copy.follow(root, version, 60))
        assert_holds(copy, root, version, tensors)
    whole = [read_index(root, v).base is None for v in versions(root)]
    assert versions(root) == [5, 6, 7, 8, 9], "the newest two and what they start from"
    assert whole == [True, False, False, False, True]
    # Every fourth is whole; of the others most is told in a few bytes.
    assert max(written[i] for i in (1, 2, 3, 5, 6, 7)) < 0.6 * written[0]
    assert max(read[i] for i in (1, 2, 3, 5, 6, 7)) < 0.6 * read[0]
    assert copy.follow(root, 9, 60) == 0, "it is there already"


def test_a_copy_that_comes_late_or_missed_versions_is_built_from_the_chain(root, tmp_path):
    sender, made = VersionSender(root, keep=9, full_every=16), history(6)
    behind, late = LocalCopy(tmp_path), LocalCopy(tmp_path)
    for version, tensors in enumerate(made[:2], start=1):
        send(sender, version, tensors)
    behind.follow(root, 2, 60)
    for version, tensors in enumerate(made[2:], start=3):
        send(sender, version, tensors)
    missed = behind.follow(root, 6, 60)
    assert late.follow(root, 6, 60) > missed
    assert_holds(behind, root, 6, made[5])
    assert_holds(late, root, 6, made[5])
    # The same numbers of another life of the run are other versions.
    other = VersionSender(tmp_path / "other", keep=1, full_every=16)
    send(other, 6, weights(77))
    late.follow(tmp_path / "other", 6, 60)
    assert_holds(late, tmp_path / "other", 6, weights(77))


def test_damage_is_named_and_the_copy_is_of_no_version_until_it_is_built_anew(root, tmp_path):
    sender, copy, made = VersionSender(root, keep=9, full_every=16), LocalCopy(tmp_path), history(4)
    for version in (1, 2):
        send(sender, version, made[version - 1])
    copy.follow(root, 1, 60)
    path = folder_of(root, 2) / "trainer-0.deltas"
    sound = path.read_bytes()
    path.write_bytes(sound[:-3] + b"xyz")
    with pytest.raises(ValueError, match=r"of version 2 in .*trainer-0\.deltas"):
        copy.follow(root, 2, 60)
    assert copy.version is None
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"trainer-0\.deltas"):
        copy.follow(root, 2, 60)
    path.write_bytes(sound)
    send(sender, 3, made[2])
    assert copy.follow(root, 3, 60) > made[0]["layers.0.weight"].nbytes * len(made[0]) / 2, "from the start"
    assert_holds(copy, root, 3, made[2])


def test_a_crash_in_the_middle_leaves_nothing_that_could_be_taken_for_a_version(root, tmp_path, monkeypatch):
    """The copy's process is killed while a delta is half applied: its file is gone, and the next begins anew."""
    made = history(2)
    sender = VersionSender(root, keep=9, full_every=16)
    for version, tensors in enumerate(made, start=1):
        send(sender, version, tensors)
    place = tmp_path / "node"
    place.mkdir()

    def half(pipe: Connection) -> None:
        copy, take = LocalCopy(place, threads=1), LocalCopy._take
        copy.follow(root, 1, 60)

        def stop_after_three(self, reader, index, deadline, name):
            if name == list(made[1])[3]:
                pipe.send(copy.path)
                signal.pause()
            return take(self, reader, index, deadline, name)

        monkeypatch.setattr(LocalCopy, "_take", stop_after_three)
        copy.follow(root, 2, 60)

    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=half, args=(its,), daemon=True)
    process.start()
    assert mine.poll(60)
    path = mine.recv()
    torn = dict(tensors_in(path, read_index(root, 2)))
    assert {name for name in made[0] if tensor_bytes(torn[name]) == tensor_bytes(made[0][name])} >= {"scale"}
    process.kill()
    process.join(10)
    assert not list(place.iterdir())
    assert not Path(path).exists()
    copy = LocalCopy(place)
    assert copy.version is None
    copy.follow(root, 2, 60)
    assert_holds(copy, root, 2, made[1])


def test_an_interrupted_copy_is_rebuilt(root, tmp_path, monkeypatch):
    made, copy = history(3), LocalCopy(tmp_path, threads=1)
    sender = VersionSender(root, keep=9, full_every=16)
    for version, tensors in enumerate(made, start=1):
        send(sender, version, tensors)
    copy.follow(root, 2, 60)
    monkeypatch.setattr(module.time, "monotonic", iter([0.0, 1.0, 2.0, *[99.0] * 99]).__next__)
    with pytest.raises(TimeoutError, match="version 3 was not copied"):
        copy.follow(root, 3, 60)
    monkeypatch.undo()
    assert copy.version is None
    copy.follow(root, 3, 60)
    assert_holds(copy, root, 3, made[2])


def test_no_room_is_told_before_anything_is_written(root, small_disk):
    sender = VersionSender(root, keep=1)
    send(sender, 1, {"big": torch.zeros(4 << 20, dtype=torch.uint8)})
    small_disk.mount(2 << 10)
    copy = LocalCopy(small_disk.path)
    with pytest.raises(OSError, match=r"takes 0\.00 GiB; weights\.local_folder") as caught:
        copy.follow(root, 1, 60)
    assert str(small_disk.path) in str(caught.value)


def test_what_changes_beyond_half_is_written_whole_and_ends_the_chain(root):
    sender = VersionSender(root, keep=1, full_every=100)
    for version in (1, 2):
        send(sender, version, {"w": torch.randn(200, generator=torch.Generator().manual_seed(version))})
    assert read_index(root, 2).base is None
    assert versions(root) == [2]
    with open_version(root) as reader:
        reader.verify()


def test_the_place_is_tmpdir_where_a_cluster_sets_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert default_place() == tmp_path
    monkeypatch.delenv("TMPDIR")
    assert os.access(default_place(), os.W_OK)
