"""A checkpoint becomes whole when the last living member has written its part, whoever leads by then."""

import torch

from disttrain.recording.checkpoint import CheckpointStore, Snapshot
from disttrain.recording.surviving_checkpoints import SurvivingCheckpointStore


def snapshot(rank, step):
    return Snapshot({"steps": torch.tensor([step])}, {"x": torch.tensor([float(rank)])}, {"workers": 3}, {"worker": rank})


def stores(folder, alive):
    return [SurvivingCheckpointStore(folder, rank, [0, 1, 2], "token", 3, lambda: sorted(alive)) for rank in range(3)]


def test_nobody_waits_and_the_last_part_makes_it_whole(tmp_path):
    first, second, third = stores(tmp_path, {0, 1, 2})
    first.save(10, snapshot(0, 10), lambda _: True)
    third.save(10, snapshot(2, 10), lambda _: True)
    first.settle()
    assert first.steps() == []
    second.save(10, snapshot(1, 10), lambda _: True)
    first.settle()
    assert first.steps() == [10]
    assert first.fault(10) is None
    assert float(second.load(10).local["x"]) == 1.0


def test_what_is_saved_is_of_its_step_even_if_it_is_completed_later(tmp_path):
    first, second, third = stores(tmp_path, {0, 1, 2})
    live = snapshot(0, 10)
    first.save(10, live, lambda _: True)
    live.shared["steps"].fill_(17)
    second.save(10, snapshot(1, 10), lambda _: True)
    third.save(10, snapshot(2, 10), lambda _: True)
    first.settle()
    assert int(first.load(10).shared["steps"]) == 10


def test_a_lost_leader_is_replaced_and_its_part_is_not_missed(tmp_path):
    alive = {0, 1, 2}
    _, second, third = stores(tmp_path, alive)
    second.save(10, snapshot(1, 10), lambda _: True)
    third.save(10, snapshot(2, 10), lambda _: True)
    alive.remove(0)
    third.settle()
    assert third.steps() == []
    second.settle()
    assert second.steps() == [10]
    again = CheckpointStore(tmp_path, 0, [0, 1, 2], "another")
    assert again.fault(10) is None
    assert float(again.load(10).local["x"]) == 1.0  # a worker without a part goes on with the first one's


def test_one_that_a_worker_has_skipped_is_overtaken(tmp_path):
    first, second, third = stores(tmp_path, {0, 1, 2})
    for store, rank in ((first, 0), (second, 1)):
        store.save(10, snapshot(rank, 10), lambda _: True)
    for store, rank in ((first, 0), (second, 1), (third, 2)):
        store.save(20, snapshot(rank, 20), lambda _: True)
    for store in (first, second, third):
        store.settle()
        assert store.steps() == [20]
        assert store._begun == []


def test_where_all_stop_one_that_does_not_come_is_left_out(tmp_path):
    first, second, _ = stores(tmp_path, {0, 1, 2})
    second.save(31, snapshot(1, 31), lambda _: True, "stop")
    first.save(30, snapshot(0, 30), lambda waited: waited < 0.05, "stop")
    assert first.steps() == [30]
    assert first.fault(30) is None
