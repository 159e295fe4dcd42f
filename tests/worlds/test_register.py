"""Who is lost is the launcher's to say, and its word reaches everybody in one piece; nobody waits longer than is usual."""

import pytest

from disttrain.launch.registrar import Registrar
from disttrain.worlds.deadline import Deadline
from disttrain.worlds.register import CLOSED, DOOR, NOT_BEGUN, RECORD, Loss, Record, beat_key, ready_key


def test_a_record_is_read_as_it_was_written():
    record = Record((3, 7, 5), {1: (Loss("it was killed by SIGKILL", 7, 1.5, 12, 20), Loss("", 9, 2.5, 30))}, {1: 2}, {1: 0})
    assert Record.load(record.dump().encode()) == record


def test_a_lost_worker_takes_part_up_to_the_step_from_which_the_others_know():
    record = Record((3, 7, 5), {1: (Loss("", 7, 1.5, 12),)})
    assert record.survivors == [0, 2]
    assert record.living(11).tolist() == [True, True, True]
    assert record.living(12).tolist() == [True, False, True]


def test_a_worker_that_is_back_takes_part_from_the_step_that_was_agreed_and_leads_last():
    record = Record((30, 30, 5), {0: (Loss("", 7, 1.5, 12, 20), Loss("", 25, 4.0, 28, 40)), 2: (Loss("", 5, 1.0, 9, 15),)})
    assert [record.living(step)[0].item() for step in (11, 12, 19, 20, 27, 28, 39, 40)] == [True, False, False, True] * 2
    assert record.survivors == [0, 1, 2]
    assert record.seniority == [1, 2, 0]


def tick(registrar, beats):
    for rank, beat in enumerate(beats):
        registrar._store.set(beat_key(rank), beat)
    registrar._next = 0.0
    registrar.tick()


def test_a_loss_takes_effect_beyond_everybodys_progress_and_everybody_can_read_it():
    registrar = Registrar(3, timeout=60.0)
    assert registrar.record.steps == (NOT_BEGUN,) * 3
    tick(registrar, ["0 1", "0 1", "-1 1"])
    assert not registrar.began
    tick(registrar, ["40 9", "50 9", "45 9"])
    assert registrar.began
    loss = registrar.lose(1, "why")
    assert loss.step == 50
    assert loss.from_step > 50
    assert Record.load(registrar._store.get(RECORD)) == registrar.record
    assert registrar.record.survivors == [0, 2]


def test_a_worker_that_is_started_again_is_let_in_when_it_has_somebodys_state_and_only_while_the_door_is_open():
    registrar = Registrar(2, timeout=60.0)
    tick(registrar, ["4 1", "4 1"])
    for life in (1, 2):
        registrar.lose(1, "why")
        assert registrar.expect(1) == life
        tick(registrar, ["50 2", "-1 0"])
        assert registrar.record.givers == {}
        registrar._store.set(ready_key(1, life), "")
        tick(registrar, ["60 3", "-1 1"])
        assert registrar.record.givers == {1: 0}
        if life == 2:
            registrar._store.set(DOOR, CLOSED)
        tick(registrar, ["70 4", "61 2"])
        assert registrar.record.survivors == ([0, 1] if life == 1 else [0])
        assert registrar.is_over == (life == 2)
        if life == 1:
            assert registrar.record.losses[1][0].back_from > 70
            assert registrar.record.givers == {}


def test_a_worker_is_silent_if_nothing_of_it_changes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    registrar = Registrar(2, timeout=5.0)
    tick(registrar, ["4 1", "4 1"])
    now[0] += 4
    tick(registrar, ["4 2", "4 1"])  # the first makes no step, but lives
    now[0] += 2
    assert registrar.silent() == [1]
    registrar.lose(1, "silent")
    assert registrar.silent() == []


def test_a_worker_that_lives_and_makes_no_step_is_silent_only_if_others_do(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    registrar = Registrar(2, timeout=5.0)
    for count in range(8):
        tick(registrar, [f"4 {count}", f"4 {count}"])
        now[0] += 1
    assert registrar.silent() == []  # all wait for something
    tick(registrar, ["5 9", "4 9"])
    assert registrar.silent() == [1]


def test_the_deadline_follows_the_median_and_not_the_slowest():
    deadline = Deadline(floor_seconds=0.1, first_seconds=10.0)
    for _ in range(7):
        deadline.add(0.2)
    assert deadline.seconds == 10.0
    for seconds in (0.3, 0.2, 0.3, 60.0):
        deadline.add(seconds)
    assert deadline.seconds == pytest.approx(0.2)
    for _ in range(200):
        deadline.add(1e-3)
    assert deadline.seconds == 0.1
