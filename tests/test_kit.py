"""The kit itself: results in order, every kind of failure told, nothing left running."""

import os
import signal
import subprocess
import threading
import time

import pytest

from tests.kit import GRACE_SECONDS, STACKS_SECONDS, WorkerFailed


def living():
    """Process ids by the session they belong to, zombies left out."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,sess=,stat="], capture_output=True, text=True, check=True).stdout
    found = {}
    for pid, session, state in map(str.split, listing.splitlines()):
        if not state.startswith("Z"):
            found.setdefault(int(session), []).append(int(pid))
    return found


def left_of(leaders):
    """Who still lives in the sessions of these workers, after the moment that a killed process takes to go."""
    deadline = time.monotonic() + 2
    while (left := [pid for leader in leaders for pid in living().get(leader, [])]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


@pytest.fixture(autouse=True)
def nothing_left(server, monkeypatch):
    """After every test, nobody is left in the sessions that its workers led."""
    started = []

    def process(*arguments, **options):
        started.append(type(server).Process(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(server, "Process", process)
    yield
    assert left_of([worker.pid for worker in started]) == []


def failure(workers, *arguments, **options):
    """The message of a group that fails, and how long it took."""
    start = time.monotonic()
    with pytest.raises(WorkerFailed) as caught:
        workers(*arguments, **options)
    return str(caught.value), time.monotonic() - start


def the_last_ends_first(world):
    time.sleep(0.1 * (world.size - world.rank))
    return world.rank


def test_results_come_back_in_rank_order(workers):
    assert workers(4, the_last_ends_first) == [0, 1, 2, 3]


def deadlocked(world):
    if world.rank == 0:
        world.gather(world.ids[None])
    threading.Thread(target=waits_in_a_thread, daemon=True).start()
    threading.Event().wait()


def waits_in_a_thread():
    threading.Event().wait()


def test_a_deadlocked_group_is_killed_in_time_with_every_stack(workers):
    message, seconds = failure(workers, 2, deadlocked, timeout=3)
    assert 3 <= seconds < 3 + STACKS_SECONDS + 1
    gathering, waiting = message.split("--- worker ")[1:]
    assert gathering.startswith("0 hung")
    assert "in gather" in gathering
    assert "in deadlocked" in gathering
    assert waiting.startswith("1 hung")
    assert "in deadlocked" in waiting
    assert "in waits_in_a_thread" in waiting


def ends_alone(world):
    if world.rank != 1:
        threading.Event().wait()


def test_the_failure_says_who_had_finished(workers):
    message, _ = failure(workers, 3, ends_alone, timeout=5)
    assert [line for line in message.splitlines() if line.startswith("--- worker 1")] == ["--- worker 1 finished"]
    assert "--- worker 0 hung" in message
    assert "--- worker 2 hung" in message


def stops(world):
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_worker_that_cannot_print_its_stacks_is_killed_all_the_same(workers):
    message, seconds = failure(workers, 1, stops, timeout=6)  # on a busy machine it takes seconds to come to its stop
    assert "--- worker 0 hung" in message
    assert "did not answer" in message
    assert seconds < 6 + STACKS_SECONDS + 1


def raises_on_one(world, wait):
    if world.rank == 1:
        raise ZeroDivisionError("the second worker's mistake")
    wait(world)


def waits_for_nothing(world):
    threading.Event().wait()


def gathers(world):
    world.gather(world.ids[None])


@pytest.mark.parametrize(("wait", "of_the_peer"), [(gathers, "0 raised"), (waits_for_nothing, "0 hung")])
def test_an_exception_on_one_worker_ends_the_group_within_seconds(workers, wait, of_the_peer):
    message, seconds = failure(workers, 2, raises_on_one, wait)
    assert seconds < GRACE_SECONDS + STACKS_SECONDS + 2
    assert "--- worker 1 raised" in message
    assert "ZeroDivisionError: the second worker's mistake" in message
    assert f"--- worker {of_the_peer}" in message


def exits(world):
    os._exit(7 * world.rank)


def test_a_worker_that_exits_is_reported_with_its_code(workers):
    message, _ = failure(workers, 2, exits)
    assert "worker 0 exited with code 0" in message
    assert "worker 1 exited with code 7" in message


def cannot_be_pickled(world):
    return threading.Lock()


def test_a_result_that_cannot_be_sent_is_told(workers):
    assert "cannot pickle" in failure(workers, 1, cannot_be_pickled)[0]


def starts_a_child(world, leader, hang):
    child = subprocess.Popen(["sleep", "600"])
    leader.write_text(str(os.getpid()))
    assert child.pid in living()[os.getpid()]
    if hang:
        child.wait()


@pytest.mark.parametrize("hang", [False, True])
def test_what_a_worker_started_ends_with_it(workers, tmp_path, hang):
    if hang:
        assert "in starts_a_child" in failure(workers, 1, starts_a_child, tmp_path / "leader", hang, timeout=5)[0]
    else:
        workers(1, starts_a_child, tmp_path / "leader", hang)
    assert left_of([int((tmp_path / "leader").read_text())]) == []


def environment(names):
    return {name: os.environ[name] for name in names}


def test_launched_workers_find_torchruns_variables(launched):
    expected = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    first, second = launched(2, environment, list(expected))
    assert second == expected
    assert first == expected | {"RANK": "0", "LOCAL_RANK": "0"}


def test_a_test_with_workers_is_marked(request, workers):
    assert request.node.get_closest_marker("multiprocess")


def test_a_test_without_workers_is_not_marked(request):
    assert not request.node.get_closest_marker("multiprocess")
