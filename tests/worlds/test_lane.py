"""Lanes: what is started together arrives in order, apart from everything else, and equals what rows would compute."""

import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist

from disttrain.launch.shutdown import describe
from disttrain.worlds import LaneError, MixingRound, StackedWorld, TorchWorld

RING = MixingRound(torch.tensor([[3, 1], [0, 2], [1, 3], [2, 0]]))
ODD = MixingRound(torch.tensor([[0, 0], [0, 2], [1, 0]]))  # worker 0 hears nobody, everybody hears it once or not at all


def own_rows(world, per_worker):
    """What each worker hands over: the same numbers in every world."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(world.size, *per_worker, generator=generator)[world.ids]


def all_primitives(world, ring=RING):
    """Every primitive's result ``[L or 1, ...]``, on a world and on a lane of it."""
    results = []
    for place in (world, world.lane("other")):
        x, square = own_rows(place, (5,)), own_rows(place, (place.size, 3))
        results += [place.gather(x), place.transpose(square), place.exchange(x, ring), place.broadcast(x), place.mean(x)]
        results += [place.gather(x.bfloat16()).float(), place.transpose(square.to(torch.bfloat16)).float()]
    return results, (world.traffic.payload_bytes, world.traffic.wire_bytes, world.traffic.collectives)


@pytest.mark.parametrize(("size", "ring"), [(4, RING), (3, ODD), (1, MixingRound(torch.tensor([[0]])))])
def test_rows_and_processes_agree_bitwise(workers, size, ring):
    stacked, counted = all_primitives(StackedWorld(size), ring)
    processes = workers(size, all_primitives, ring)
    assert processes[0][1] == counted, "payload, wire bytes and calls of worker 0"
    for index, expected in enumerate(stacked):
        rows = torch.cat([results[index] for results, _ in processes])
        if index % 7 == 4:
            assert torch.allclose(rows, expected.expand_as(rows), rtol=1e-6), "an all-reduce sums in its own order"
        else:
            assert torch.equal(rows, expected.expand_as(rows)), index


def busy_lanes(world):
    """Two lanes and the world itself at once, submitted in another order on every worker."""
    lanes = [world.lane(name) for name in "ab"]
    order = lanes if world.rank % 2 else lanes[::-1]
    x = own_rows(world, (1000,))
    jobs = {lane: [] for lane in lanes}
    for step in range(20):
        for lane in order:
            jobs[lane].append(lane.start(lane.gather, x * step))
        world.mean(x)
    return [torch.stack([job.take() for job in jobs[lane]]) for lane in lanes]


def test_lanes_do_not_meet(workers):
    expected = torch.stack([own_rows(StackedWorld(3), (1000,))[None] * step for step in range(20)])
    for lanes in workers(3, busy_lanes):
        assert all(torch.equal(each, expected) for each in lanes)


def overlapped(world):
    lane = world.lane("slow")
    waiting = world.traffic.exposed_seconds
    job = lane.start(lambda: (time.sleep(0.3), lane.gather(torch.zeros(1, 2)))[1])
    time.sleep(0.5)  # computing
    job.take()
    hidden = world.traffic.exposed_seconds - waiting
    lane.start(lambda: (time.sleep(0.3), lane.gather(torch.zeros(1, 2)))[1]).take()
    return hidden, world.traffic.exposed_seconds - waiting - hidden


def test_only_the_callers_waiting_is_exposed(workers):
    for hidden, waited in workers(2, overlapped):
        assert hidden < 0.1
        assert waited > 0.25


def direct_calls_wait_for_their_turn(world):
    lane = world.lane("both")
    order = []
    first = lane.start(lambda: (time.sleep(0.1), order.append("job"), lane.gather(torch.zeros(1, 1)))[2])
    lane.gather(torch.ones(1, 1))
    order.append("direct")
    first.take()
    return order


def test_a_direct_call_waits_behind_started_jobs(workers):
    assert workers(2, direct_calls_wait_for_their_turn) == [["job", "direct"]] * 2


def pairs(world):
    """Workers 0 and 2 among themselves, then 1 and 3: each worker writes what its own pair found."""
    x = own_rows(world, (3,))
    found = torch.zeros_like(x)
    for members in ([0, 2], [3, 1]):
        lane = world.lane(f"pair {members}", members)
        assert lane.size == 2
        mine = x[lane.rows]
        swap = MixingRound(torch.tensor([[1], [0]]))
        found[lane.rows] = lane.mean(mine) + lane.gather(mine).sum(1) + lane.exchange(mine, swap)[:, 0] + lane.broadcast(mine)
        found[lane.rows] += lane.start(lane.transpose, mine[:, None].expand(-1, 2, -1)).take().sum(1)
    return found, world.traffic.wire_bytes


def test_sub_groups_need_no_if(workers):
    expected, sent = pairs(StackedWorld(4))
    processes = workers(4, pairs)
    assert torch.equal(torch.cat([found for found, _ in processes]), expected), "two workers' sums have one order only"
    assert processes[0][1] == sent


def failing(world):
    lane = world.lane("failing")

    def fail():
        raise ValueError("no such thing")

    first, second = lane.start(fail), lane.start(lane.gather, torch.zeros(1, 1))
    messages = []
    for job in (first, second):
        with pytest.raises(ValueError, match="no such thing") as caught:
            job.take()
        messages.append(str(caught.value))
    return messages


def test_a_failed_job_ends_its_lane(workers):
    assert workers(2, failing) == [["no such thing"] * 2] * 2


def taken_twice_and_too_late(world):
    lane = world.lane("slow")
    release = threading.Event()
    job = lane.start(lambda: release.wait() and lane.gather(torch.ones(1, 1)))
    with pytest.raises(TimeoutError):
        job.take(timeout_seconds=0.05)
    release.set()
    result = job.take()
    with pytest.raises(RuntimeError, match="taken already"):
        job.take()
    return float(result.sum())


def test_a_result_is_taken_once_and_late_ones_can_be_waited_for_again(workers):
    assert workers(2, taken_twice_and_too_late) == [2.0, 2.0]


def starts_on_its_own_lane(world, kind):
    lane = world_of(kind).lane("outer")
    with pytest.raises(LaneError, match=r"gather was started by a job on its own lane"):
        lane.start(lambda: lane.start(lane.gather, torch.zeros(len(lane.ids), 1)).take()).take()


@pytest.mark.parametrize("kind", ["rows", "processes"])
def test_a_job_that_would_wait_for_itself_is_refused(workers, kind):
    run(workers, starts_on_its_own_lane, kind)


PAIRS = torch.tensor([[2, 0], [1, 1], [0, 3], [3, 2]])  # 0 with 2, 2 with 3, and nobody with 1


def knows_its_own_peers_only(world):
    """What each heard, and the bytes of worker 0."""
    lane, results = world.lane("pairs"), []
    for peers in (PAIRS, torch.arange(4)[:, None]):  # in the second one nobody talks
        results.append(lane.exchange_with(own_rows(lane, (5,)), peers[world.ids]))
    return results, (world.traffic.payload_bytes, world.traffic.wire_bytes, world.traffic.collectives)


def test_peers_who_know_only_each_other(workers):
    stacked, counted = knows_its_own_peers_only(StackedWorld(4, debug=True))
    processes = workers(4, knows_its_own_peers_only)
    assert processes[0][1] == counted == (20, 20, 1)
    for index, peers in enumerate((PAIRS, torch.arange(4)[:, None])):
        assert torch.equal(stacked[index], own_rows(StackedWorld(4), (5,))[peers])
        assert torch.equal(torch.cat([results[index] for results, _ in processes]), stacked[index])


def loves_without_return(world, kind):
    world = debug_world(kind)
    with pytest.raises(ValueError, match="worker 0 would wait for worker 1, which does not know of it"):
        world.exchange_with(torch.zeros(len(world.ids), 3), torch.tensor([[1], [1]])[world.ids])


@pytest.mark.parametrize("kind", ["rows", "processes"])
def test_peers_who_are_not_mutual_are_found_in_debug_mode(workers, kind):
    run(workers, loves_without_return, kind)


def wrong_arguments(world, kind):
    world = world_of(kind)
    for ranks in ([0, 5], [0, 0], [-1, 1], []):
        with pytest.raises(ValueError, match=r"a lane's ranks must be different ones of 0 to 1, got"):
            world.lane("nobody", ranks)
    x = torch.zeros(len(world.ids), 3)
    with pytest.raises(ValueError, match=r"a mixing round of 2 workers needs senders \[2, k\], got \[4, 2\]"):
        world.exchange(x, RING)
    assert world.exchange(x, MixingRound(torch.empty(2, 0, dtype=torch.int64))).shape == (len(world.ids), 0, 3)


@pytest.mark.parametrize("kind", ["rows", "processes"])
def test_wrong_ranks_and_rounds_are_refused(workers, kind):
    run(workers, wrong_arguments, kind)


# --- debug mode ------------------------------------------------------------------------------------------------------


def out_of_order(world, where):
    world = TorchWorld(debug=True)
    place = world.lane("outer") if where == "lane" else world
    calls = [place.mean, place.gather]
    for call in calls if world.rank == 0 else calls[::-1]:
        call(torch.zeros(1, 4))


@pytest.mark.parametrize("where", ["lane", "world"])
def test_debug_mode_catches_a_wrong_order(workers, where):
    expected = "the workers are out of order on " + ("lane 'outer'" if where == "lane" else "world")
    with pytest.raises(AssertionError, match=expected) as caught:
        workers(2, out_of_order, where)
    assert "worker 0 is at call" in str(caught.value)
    assert "mean of float32 [1, 4]" in str(caught.value)
    assert "gather of float32 [1, 4]" in str(caught.value)


def other_shape(world):
    TorchWorld(debug=True).gather(torch.zeros(1, 4 + world.rank))


def test_debug_mode_catches_another_shape(workers):
    with pytest.raises(AssertionError, match=r"gather of float32 \[1, 4\].*gather of float32 \[1, 5\]"):
        workers(2, other_shape)


def other_lane(world):
    TorchWorld(debug=True).lane("abcd"[world.rank])


def test_debug_mode_catches_lanes_made_in_another_order(workers):
    with pytest.raises(AssertionError, match=r"lane 'a' of \[0, 1\]"):
        workers(2, other_lane)


def world_of(kind):
    return StackedWorld(2) if kind == "rows" else TorchWorld()


def debug_world(kind):
    return StackedWorld(2, debug=True) if kind == "rows" else TorchWorld(debug=True)


def writes_to_a_lent_tensor(world, kind):
    lane = debug_world(kind).lane("outer")
    x = torch.zeros(len(lane.ids), 4)
    job = lane.start(lane.gather, x)
    x += 1
    with pytest.raises(LaneError, match=r"wrote to an argument of .*gather"):
        job.take()


class KeepsItsMean:
    """A job that returns its own state: the prototype's mistake."""

    def __init__(self, how):
        self.how, self.state = how, torch.zeros(1, 4)

    def __call__(self, lane, x):
        self.state += lane.gather(x).mean(1)
        return {"state": self.state, "view": self.state[:, :2], "argument": x, "nested": (torch.ones(1), [{"it": self.state}])}[
            self.how
        ]


def returns_what_lives_on(world, kind, how):
    lane = debug_world(kind).lane("outer")
    x = torch.zeros(len(lane.ids), 4)
    with pytest.raises(LaneError, match="shares memory with a tensor that lives on"):
        lane.start(KeepsItsMean(how), lane, x).take()


def returns_something_fresh(world, kind):
    lane = debug_world(kind).lane("outer")
    x = torch.ones(len(lane.ids), 4)
    view_of_fresh, pair, nothing = (
        lane.start(lambda: lane.gather(x)[0, :, 1:]),
        lane.start(lambda: (lane.gather(x), {"number": 3}, *lane.gather(x).chunk(2, 1))),
        lane.start(lambda: None),
    )
    assert view_of_fresh.take().shape == (2, 3)
    assert pair.take()[1] == {"number": 3}
    assert nothing.take() is None


@pytest.mark.parametrize("kind", ["rows", "processes"])
def test_debug_mode_catches_a_changed_lent_tensor(workers, kind):
    run(workers, writes_to_a_lent_tensor, kind)


@pytest.mark.parametrize("kind", ["rows", "processes"])
@pytest.mark.parametrize("how", ["state", "view", "argument", "nested"])
def test_debug_mode_catches_a_result_that_lives_on(workers, kind, how):
    run(workers, returns_what_lives_on, kind, how)


@pytest.mark.parametrize("kind", ["rows", "processes"])
def test_debug_mode_lets_correct_jobs_pass(workers, kind):
    run(workers, returns_something_fresh, kind)


def run(workers, check, kind, *arguments):
    if kind == "rows":
        check(None, kind, *arguments)
    else:
        workers(2, check, kind, *arguments)


def groups_made(world):
    before = len(dist.distributed_c10d._world.pg_map)
    StackedWorld(4).lane("rows")
    lane = world.lane("one")
    lane.gather(torch.zeros(1, 1))  # or one worker may be done and gone while the other still connects
    return len(dist.distributed_c10d._world.pg_map) - before


def test_a_lane_of_processes_has_a_group_of_its_own(workers):
    assert workers(2, groups_made) == [1, 1]


def peer_lost_in_flight(world):
    lane = world.lane("outer")
    lane.gather(torch.zeros(1, 1))
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    try:
        lane.start(lane.gather, torch.zeros(1, 1)).take()
    except RuntimeError as error:
        raise RuntimeError(f"{describe(error)[0]} after {time.monotonic() - start:.1f} s") from error


def test_a_lost_peer_is_told_by_take_at_once(workers):
    with pytest.raises(AssertionError, match=r"RuntimeError: peer after [0-4]\.\d s"):
        workers(2, peer_lost_in_flight)


def waits_on_another_lane(world):
    one, other = world.lane("one"), world.lane("other")
    before = world.traffic.exposed_seconds
    flight = one.start(lambda: other.start(time.sleep, 0.3).take())
    time.sleep(0.6)
    flight.take()
    return world.traffic.exposed_seconds - before


def test_a_lane_that_waits_for_another_exposes_nothing(workers):
    assert workers(1, waits_on_another_lane)[0] < 0.2
