"""Ordered learning: pacing, who comes first, what is scored by what, and that without pacing nothing changes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.federated import RERCE, SCALLION, Availability, ContinualRERCE, FedAMD, FedAvg, Order, Ordered, PacingConfig, Work
from disttrain.federated.arrivals import DeadlineConfig, LatencyConfig
from disttrain.federated.ordered import LOSS, SCORES, Eligible, eligible
from disttrain.federated.pacing import RISE
from disttrain.federated.participation import AntiCurriculumConfig, CurriculumConfig
from tests.federated.quadratics import Quadratics, federation, run
from tests.federated.strategies import few, sizes

shares = st.floats(0.01, 1.0)
pacings = st.builds(PacingConfig, shape=st.sampled_from(sorted(RISE)), start=shares, until=shares)
AT_ONCE = PacingConfig(start=1.0)


# --- pacing ------------------------------------------------------------------------------------------------------------


@given(pacings, st.integers(1, 60), st.integers(1, 40), st.integers(0, 9))
def test_pacing_never_falls_and_ends_with_everything(pacing, rounds, n, least):
    counts = [pacing.count(n, number, rounds, least) for number in range(rounds)]
    assert counts == sorted(counts)
    assert counts[-1] == n
    assert min(n, max(1, least)) <= counts[0] <= n
    every = [pacing.share(number, rounds) for number in range(rounds)]
    assert every[0] == (pacing.start if rounds > 1 else 1.0)
    assert all(share == 1 for number, share in enumerate(every) if number >= pacing.until * (rounds - 1))


@pytest.mark.parametrize(
    ("shape", "halfway"),
    [
        ("linear", 0.6),
        ("quadratic", 0.4),
        ("root", 0.765685),
        ("step", 0.2),
        ("exponential", 0.205354),
        ("logarithmic", 0.944555),
    ],
)
def test_the_families(shape, halfway):
    assert PacingConfig(shape=shape, start=0.2, until=0.5).share(10, 41) == pytest.approx(halfway, abs=1e-6)


def test_the_share_is_whole_where_the_product_is():
    assert PacingConfig(shape="step", until=0.07).share(7, 101) == 1.0
    assert PacingConfig(shape="step", until=0.07).share(6, 101) == 0.2


def test_decimal_fractions_are_not_rounded_up_once_more():
    assert PacingConfig(start=0.2).count(15, 0, 300) == 3
    assert PacingConfig(start=0.2).count(16, 0, 300) == 4


# --- samples -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=9), st.data())
def test_hard_first_is_easy_first_reversed(scores, data):
    scores = torch.tensor(scores)
    count = data.draw(st.integers(1, len(scores)))
    easy, hard = eligible("easy", scores, count), eligible("hard", scores, len(scores) - count)
    assert sorted([*easy.tolist(), *hard.tolist()]) == list(range(len(scores))), "ties, too, come from two ends"
    others = scores[~torch.isin(torch.arange(len(scores)), easy)]
    assert len(easy) == count
    assert scores[easy].max() <= min(others.tolist(), default=9)


@few
@given(sizes(), st.sampled_from(["easy", "hard", "random"]), st.sampled_from(["global", "local"]))
def test_starting_with_everything_is_no_curriculum_to_the_bit(size, first, score):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    settings = {"cohort": size.cohort, "steps": size.steps, "seed": size.seed}
    plain = run(federation(SCALLION(), problem, **settings), 4)
    ordered = run(federation(Ordered(SCALLION(), Order(first, AT_ONCE, score), reports=AT_ONCE), problem, **settings), 4)
    assert all(torch.equal(plain.server[name], ordered.server[name]) for name in plain.server)
    assert plain.totals == ordered.totals, "nothing is scored, and nothing sent for it"


@pytest.mark.parametrize("order", [Order("hard"), Order("easy", score="local"), Order("random")], ids=str)
def test_a_client_of_which_all_can_be_drawn_does_as_ever_to_the_bit(order):
    """Though others of its block do not."""

    class Uneven(Quadratics):
        def sample_losses(self, y, clients):
            return [each[: int(n)] for each, n in zip(super().sample_losses(y, clients), self.sizes[clients], strict=True)]

    problem = Uneven(5, 3, rows=9)
    problem.sizes = torch.tensor([9, 2, 3, 9, 1])
    plain, ordered = (federation(each, problem, steps=4, batch_size=3) for each in (FedAvg(), Ordered(FedAvg(), order)))
    rows = []
    for fed in (plain, ordered):
        message = {"x": fed.x.expand(5, -1)}
        work = Work.of_block(problem, fed.plan, fed.clients)
        reply, _ = fed.algorithm.client(message, fed.store.read(fed.clients), work)
        rows.append((reply["delta"].values, work.ledger))
    same = (rows[0][0] == rows[1][0]).all(1)
    assert same.tolist() == [False, True, True, False, True]
    times = 0 if order.first == "random" else 2 if order.score == "local" else 1
    assert rows[1][1].scored.tolist() == [9 * times, 0, 0, 9 * times, 0]


class Watched(Quadratics):
    """Notes which samples were drawn, by client."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.drawn = [set() for _ in self.sizes]

    def gradients(self, y, clients, draws):
        for client, row in zip(clients.tolist(), draws % self.sizes[clients, None], strict=True):
            self.drawn[client] |= set(row.tolist())
        return super().gradients(y, clients, draws)


@pytest.mark.parametrize("first", ["easy", "hard", "random"])
@pytest.mark.parametrize("serial", [True, False])
def test_only_samples_whose_turn_it_is_are_drawn_and_in_the_end_all(first, serial):
    problem = Watched(4, 3, rows=10)
    pacing = PacingConfig(start=0.3, until=0.5)
    fed = federation(Ordered(FedAvg(), Order(first, pacing)), problem, serial=serial, steps=40, rounds=9)
    for number in range(9):
        scores = problem.sample_losses(fed.x.expand(4, -1), torch.arange(4))
        problem.drawn = [set() for _ in range(4)]
        report = fed.step()
        count = pacing.count(10, number, 9)
        assert all(len(drawn) == count for drawn in problem.drawn), "with 80 draws none is missed"
        if first != "random" and count < 10:
            expected = [set(eligible(first, each, count).tolist()) for each in scores]
            assert problem.drawn == expected
        assert report.scored == (40 if first != "random" and count < 10 else 0)


def test_an_order_by_chance_is_a_clients_own_and_stays():
    problem = Watched(6, 3, rows=10)
    fed = federation(Ordered(FedAvg(), Order("random", PacingConfig(start=0.3))), problem, steps=60)
    fed.step()
    before = problem.drawn
    assert len({frozenset(each) for each in before}) > 1
    problem.drawn = [set() for _ in range(6)]
    fed.step()
    assert all(first <= then for first, then in zip(before, problem.drawn, strict=True))


def test_at_least_a_batch_can_be_drawn():
    problem = Watched(3, 2, rows=10)
    run(federation(Ordered(FedAvg(), Order("random", PacingConfig(start=0.01))), problem, steps=40, batch_size=4), 1)
    assert {len(each) for each in problem.drawn} == {4}


def test_draws_stay_as_random_as_they_were_and_alike_among_positions():
    class Seen:
        sizes = torch.tensor([7, 7])

        def gradients(self, y, clients, draws):
            self.draws = draws
            return y.sum(-1), y

    seen, draws = Seen(), torch.randint(2**62, 2**63 - 1, (2, 9000), generator=torch.Generator().manual_seed(0))
    problem = Eligible(seen, torch.tensor([1, 0]), [torch.tensor([2, 5, 6]), torch.tensor([4])])
    problem.gradients(torch.ones(2, 1), torch.tensor([0, 1]), draws)
    assert set((seen.draws[0] % 7).tolist()) == {4}
    counts = torch.bincount(seen.draws[1] % 7, minlength=7)
    assert counts.nonzero()[:, 0].tolist() == [2, 5, 6]
    assert (counts[[2, 5, 6]] - 3000).abs().max() < 200
    assert len(set(seen.draws.flatten().tolist())) == 18_000, "a model that draws is seeded with them"


# --- scores ------------------------------------------------------------------------------------------------------------


def test_a_local_order_is_by_the_clients_own_model_of_when_it_was_last_asked():
    problem = Quadratics(4, 3, rows=8)
    pacing = PacingConfig(start=0.4)
    fed = federation(Ordered(FedAvg(), Order("hard", pacing, "local")), problem, cohort=2, steps=3, batch_size=1)
    known = fed.store.vectors[SCORES]
    assert known.isinf().all()
    cohort = fed.availability.participation.cohort(torch.arange(4), problem.sizes, 2, 0, 0)
    report = fed.step()
    assert report.scored == 2 * 2 * 8, "by the model they were sent, and by their own"
    assert known.isinf().all(1).tolist() == [client not in cohort for client in range(4)]
    # what they are is what the last local step's point gives
    other = federation(Ordered(FedAvg(), Order("hard", pacing, "global")), Noting(4, 3, rows=8), cohort=2, steps=3, batch_size=1)
    other.step()
    points = dict(zip(other.engine.problem.clients.tolist(), other.engine.problem.last, strict=True))
    for client in cohort.tolist():
        expected = problem.sample_losses(points[client][None], torch.tensor([client]))[0]
        torch.testing.assert_close(known[client], expected)
    again = run(fed, 5)
    assert again.totals.scored == 8 * (2 * 6 + 4), "by their own each time, and once by what they were sent"


class Noting(Quadratics):
    """Notes where gradients were last computed."""

    def gradients(self, y, clients, draws):
        self.last, self.clients = y, clients
        return super().gradients(y, clients, draws)


def test_an_expert_is_asked_once():
    problem, expert = Quadratics(4, 3, rows=8), torch.full((3,), 2.0, dtype=torch.float64)
    fed = federation(Ordered(FedAvg(), Order("easy", PacingConfig(start=0.4), "expert", expert)), problem, cohort=2)
    run(fed, 12)
    assert fed.totals.scored == 4 * 8
    expected = torch.stack(problem.sample_losses(expert.expand(4, -1), torch.arange(4)))
    torch.testing.assert_close(fed.store.vectors[SCORES], expected)


def test_clients_of_unequal_size_keep_scores_of_what_they_have():
    problem = Quadratics(3, 2, rows=6)
    problem.sizes = torch.tensor([6, 2, 4])
    problem.sample_losses = lambda y, clients: [
        each[: int(n)] for each, n in zip(Quadratics.sample_losses(problem, y, clients), problem.sizes[clients], strict=True)
    ]
    fed = run(federation(Ordered(FedAvg(), Order(score="local", pacing=PacingConfig(until=1.0))), problem, batch_size=1), 3)
    assert fed.store.vectors[SCORES].isfinite().sum(1).tolist() == [6, 2, 4]


# --- clients -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([0.5, 1.0, 2.0, float("inf")]), min_size=1, max_size=12),
    pacings,
    st.booleans(),
    st.integers(0, 19),
    st.data(),
)
def test_who_can_be_asked(losses, pacing, largest_first, number, data):
    losses = torch.tensor(losses)
    count = data.draw(st.integers(1, len(losses)))
    way = (AntiCurriculumConfig if largest_first else CurriculumConfig)(pacing=pacing)
    chosen = way.among(losses, count, number, 20)
    unknown = losses.isinf()
    assert int(chosen.sum()) >= count, "a cohort can always be filled"
    assert chosen[unknown].all()
    known = -losses if largest_first else losses
    inside, outside = known[chosen & ~unknown].tolist(), known[~chosen].tolist()
    assert max(inside, default=-9) <= min(outside, default=9)
    if (of_all := pacing.count(len(losses), number, 20, count)) == len(losses):
        assert chosen.all()
    elif number * count < len(losses):
        assert len(inside) == max(0, count - int(unknown.sum())), "the unknown come first while there are rounds to hear them"
    else:
        assert len(inside) == min(of_all, int((~unknown).sum()))


@pytest.mark.parametrize("way", [CurriculumConfig, AntiCurriculumConfig])
def test_clients_are_heard_once_each_and_then_asked_by_their_losses(way):
    problem, pacing = Quadratics(9, 3), PacingConfig(start=0.34, until=1.0)
    who = Availability(3, participation=way(pacing=pacing))
    fed = federation(Ordered(FedAvg(), reports=pacing), problem, availability=who)
    for _ in range(3):
        fed.step()
    losses = fed.store.vectors[LOSS][:, 0]
    assert losses.isfinite().all()
    for number in range(3, 20):
        clients = fed._candidates(3, replace(fed.plan, round=number))
        assert len(clients) == pacing.count(9, number, 20, 3)
        before, x = fed.store.vectors[LOSS][:, 0].clone(), fed.x
        report = fed.step()
        after = fed.store.vectors[LOSS][:, 0]
        asked = (before != after).nonzero()[:, 0]
        if number < 19:
            assert set(asked.tolist()) <= set(clients.tolist())
            full = torch.stack([each.mean() for each in problem.sample_losses(x.expand(9, -1), torch.arange(9))])
            torch.testing.assert_close(after[asked], full[asked])
            assert (report.bytes_up, report.scored) == (3 * (3 * 8 + 8), 3 * 6)
        else:
            assert (report.bytes_up, report.scored, len(asked)) == (3 * 3 * 8, 0, 0), "all can be asked: no losses are needed"


def test_clients_that_are_always_late_do_not_keep_the_others_out():
    slow = LatencyConfig(seconds=1.0, client_spread=2.0)
    who = Availability(3, CurriculumConfig(pacing=PacingConfig(until=1.0)), DeadlineConfig(seconds=3.5), latency=slow)
    fed = federation(Ordered(FedAvg(), reports=PacingConfig(until=1.0)), Quadratics(12, 3), availability=who, rounds=60)
    late = int(fed.availability.latency.draw(fed.clients, 3, 0, 0).gt(3.5).sum())
    assert 3 <= late <= 8, "enough to fill a cohort"
    reports = [fed.step() for _ in range(60)]
    assert int(fed.store.vectors[LOSS].isinf().sum()) == late
    assert sum(report.void for report in reports[4:]) < 15
    assert sum(report.used for report in reports[4:]) > 56 * 3 * 0.3


@few
@given(sizes())
def test_asking_all_from_the_start_is_uniform_to_the_bit(size):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    plain = run(federation(FedAvg(), problem, size.cohort, seed=size.seed), 4)
    who = Availability(size.cohort, participation=CurriculumConfig(pacing=AT_ONCE))
    ordered = federation(Ordered(FedAvg(), reports=AT_ONCE), problem, availability=who, seed=size.seed)
    assert torch.equal(plain.x, run(ordered, 4).x)


# --- what does not fit --------------------------------------------------------------------------------------------------


def test_what_cannot_be_ordered_is_refused():
    problem, who = Quadratics(4, 3), Availability(2, participation=CurriculumConfig())
    with pytest.raises(ValueError, match="gradients computed on large batches"):
        federation(Ordered(FedAMD(0.5), Order()), problem)
    with pytest.raises(ValueError, match="does not send clients the model"):
        federation(Ordered(RERCE(1.0), reports=PacingConfig()), problem)
    run(federation(Ordered(RERCE(1.0), Order("random")), problem), 2)  # needs no losses
    run(federation(Ordered(ContinualRERCE(0.1), Order(), PacingConfig()), problem, availability=who), 3)
    with pytest.raises(ValueError, match="paced by the number of rounds"):
        federation(Ordered(FedAvg(), Order()), problem, rounds=None)
    with pytest.raises(ValueError, match="which FedAvg does not report"):
        federation(FedAvg(), problem, availability=who)
    with pytest.raises(ValueError, match="an expert's parameters are for score=expert"):
        Order(score="expert")
    run(federation(Ordered(FedAMD(0.5), reports=PacingConfig()), problem, availability=who), 3)  # clients can be


def test_a_problem_without_losses_of_samples_is_refused():
    problem = Quadratics(4, 3)

    class Unscored:
        sizes, gradients, d = problem.sizes, problem.gradients, 3

    with pytest.raises(TypeError, match="Unscored has no losses of single samples"):
        federation(Ordered(FedAvg(), Order()), Unscored()).step()
