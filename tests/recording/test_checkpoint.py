"""A checkpoint is whole or not there; what is damaged is named, and what is older stays."""

import errno
import json
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.recording import checkpoint
from disttrain.recording.checkpoint import CheckpointError, CheckpointStore, Snapshot, rank_file


def snapshot(value, rank=0):
    x = torch.full((3, 5), float(value))
    shared = {"x": x, "half": x.bfloat16(), "scalar": torch.tensor(value), "view": x[:, 1:3]}
    return Snapshot(shared, {"mine": torch.tensor([rank, value])}, {"step": value}, {"rank": rank})


def store(path, rank=0, members=(0,), **options):
    return CheckpointStore(path, rank, list(members), token="t", **options)


def five_seconds(waited):
    return waited < 5.0


def no_patience(waited):
    return False


def save_all(path, size, step, **options):
    """All ranks save at once, as they do in a run; the leader's error, if any, is raised."""
    stores = [store(path, rank, range(size), **options) for rank in range(size)]
    others = [threading.Thread(target=s.save, args=(step, snapshot(step, s.rank), five_seconds)) for s in stores[1:]]
    for thread in others:
        thread.start()
    stores[0].save(step, snapshot(step), five_seconds)
    for thread in others:
        thread.join()
    return stores


def test_what_is_saved_is_loaded_bit_by_bit(tmp_path):
    for rank, each in enumerate(save_all(tmp_path, 3, 7)):
        assert each.fault(7) is None
        loaded, saved = each.load(7), snapshot(7, rank)
        assert (loaded.shared_facts, loaded.local_facts) == (saved.shared_facts, saved.local_facts)
        for ours, theirs in ((loaded.shared, saved.shared), (loaded.local, saved.local)):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000007"]


def test_views_of_one_flat_buffer_are_saved_as_they_are(tmp_path):
    flat = torch.arange(20.0)
    views = {"a": flat[:8].view(2, 4), "b": flat[8:16], "c": flat[16:20]}
    store(tmp_path).save(1, Snapshot(views, {}, {}, {}), no_patience)
    loaded = store(tmp_path).load(1).shared
    assert all(torch.equal(loaded[name], view) for name, view in views.items())


def test_only_the_newest_stay(tmp_path):
    only = store(tmp_path, keep=2)
    for step in (1, 2, 3):
        only.save(step, snapshot(step), no_patience)
    assert only.steps() == [3, 2]


@given(st.integers(0, 10**9), st.sampled_from([checkpoint.SHARED, rank_file(0), rank_file(1)]))
def test_any_flipped_byte_is_detected_and_the_file_named(position, name):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        leader, _ = save_all(Path(folder), 2, 4)
        path = Path(folder) / "step_00000004" / name
        data = bytearray(path.read_bytes())
        data[position % len(data)] ^= 1 << position % 8
        path.write_bytes(data)
        assert name in (leader.fault(4) or "")


def test_a_truncated_missing_or_unparsable_file_is_named(tmp_path):
    only = store(tmp_path)
    only.save(1, snapshot(1), no_patience)
    shared, manifest = (tmp_path / "step_00000001" / name for name in (checkpoint.SHARED, checkpoint.MANIFEST))
    data = shared.read_bytes()
    shared.write_bytes(data[:-1])
    assert f"{shared} is damaged: {len(data) - 1} bytes instead of {len(data)}" in only.fault(1)
    shared.unlink()
    assert f"{shared} is unreadable" in only.fault(1)
    for text in (
        "",
        "{",
        "[]",
        "{}",
        json.dumps({"format": 99}),
        json.dumps({"format": 1}),
        json.dumps({"format": 1, "files": 3}),
    ):
        manifest.write_text(text)
        assert str(manifest) in only.fault(1)


@pytest.mark.parametrize("full_at", [checkpoint.SHARED, rank_file(0), "rank00000.tmp", "manifest.tmp"])
def test_a_full_disk_leaves_the_older_checkpoint_and_says_so(tmp_path, monkeypatch, full_at):
    only = store(tmp_path)
    only.save(1, snapshot(1), no_patience)
    real_open = type(tmp_path).open

    def open_on_a_full_disk(path, mode="r", *arguments, **options):
        if path.name == full_at and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real_open(path, mode, *arguments, **options)

    monkeypatch.setattr(type(tmp_path), "open", open_on_a_full_disk)
    with pytest.raises(CheckpointError, match="checkpoint of step 2 not saved: No space left on device"):
        only.save(2, snapshot(2), no_patience)
    assert only.steps() == [1]
    assert only.fault(1) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001"]


def test_the_leader_does_not_wait_forever_for_a_member(tmp_path):
    with pytest.raises(CheckpointError, match="worker 1 has not written its part"):
        store(tmp_path, members=(0, 1)).save(3, snapshot(3), no_patience)
    assert store(tmp_path).steps() == []


def test_what_a_crash_left_half_written_is_nobodys(tmp_path):
    partial = tmp_path / "step_00000005.partial-old"
    partial.mkdir()
    (partial / "rank00001.json").write_text("{}")
    leader = store(tmp_path, members=(0, 1))
    assert leader.steps() == []
    with pytest.raises(CheckpointError, match="worker 1"):
        leader.save(5, snapshot(5), no_patience)
    leader.forget_leftovers()
    assert not partial.exists()


def test_a_new_worker_takes_the_first_ones_part(tmp_path):
    save_all(tmp_path, 2, 1)
    assert store(tmp_path, rank=5, members=(0, 1, 5)).load(1).local_facts == {"rank": 0}


def test_a_checkpoint_saved_again_replaces_the_damaged_one(tmp_path):
    only = store(tmp_path)
    only.save(1, snapshot(1), no_patience)
    (tmp_path / "step_00000001" / checkpoint.SHARED).write_bytes(b"")
    only.save(1, snapshot(1), no_patience)
    assert only.fault(1) is None
