"""SCALLION and SCAFCOM, and SCAFFOLD as their special case."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.compression import QSGD, RandK, ScaledSign, TopK
from disttrain.federated import SCAFCOM, SCALLION, Availability, FedAvg, Plan, Work
from disttrain.federated.arrivals import DeadlineConfig, LatencyConfig
from disttrain.federated.participation import UniformConfig
from tests.federated.quadratics import FullGradients, Quadratics, federation, run
from tests.federated.strategies import few, sizes
from tests.reference.scaffold import scaffold_round

ALGORITHMS = {
    "scaffold": SCALLION(),
    "scallion": SCALLION(RandK(0.4, unbiased=True), alpha=0.1),
    "scallion, qsgd": SCALLION(QSGD(4), alpha=0.5),
    "scafcom": SCAFCOM(TopK(0.2), beta=0.2),
    "scafcom, sign": SCAFCOM(ScaledSign(), beta=0.5),
    "scafcom, dense": SCAFCOM(beta=0.3, server_lr=2.0),
}


@few
@given(sizes(), st.sampled_from(sorted(ALGORITHMS)), st.sampled_from([0.0, 0.4]))
def test_c_is_the_mean_of_all_controls_whoever_is_lost_and_whatever_is_compressed(size, name, dropout):
    late = LatencyConfig(seconds=1.0, round_spread=1.0)
    who = Availability(size.cohort, waiting=DeadlineConfig(seconds=1.5 * size.steps), dropout=dropout, latency=late)
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    fed = federation(ALGORITHMS[name], problem, availability=who, steps=size.steps, seed=size.seed, block_size=3)
    assert not fed.server["c"].any()
    for _ in range(6):
        fed.step()
        torch.testing.assert_close(fed.server["c"], fed.store.vectors["control"].mean(0), atol=1e-10, rtol=1e-10)


@few
@given(sizes(), st.sampled_from([0.5, 1.0, 2.0]))
def test_scaffold_is_the_papers_option_two(size, server_lr):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    fed = federation(SCALLION(server_lr=server_lr), problem, size.cohort, steps=size.steps, seed=size.seed)
    x, c, controls = np.zeros(size.d), np.zeros(size.d), np.zeros((size.clients, size.d))
    for number in range(5):
        plan = Plan(size.clients, size.seed, size.steps, 0.1, 2, round=number)
        cohort = UniformConfig().cohort(torch.arange(size.clients), problem.sizes, size.cohort, size.seed, number)

        def gradient(y, client, step, plan=plan):
            work = Work.of_block(problem, plan, torch.tensor([client]))
            return work.gradient(torch.from_numpy(y)[None], step)[0].numpy()

        x, c = scaffold_round(x, c, controls, cohort.tolist(), gradient, None, size.steps, 0.1, server_lr, option=2)
        fed.step()
        np.testing.assert_allclose(fed.x, x, atol=1e-10)
        np.testing.assert_allclose(fed.server["c"], c, atol=1e-10)
        np.testing.assert_allclose(fed.store.vectors["control"], controls, atol=1e-10)


@few
@given(sizes())
def test_without_compression_all_three_are_one(size):
    problem = Quadratics(size.clients, size.d, seed=size.seed)
    feds = [federation(each, problem, size.cohort, steps=size.steps) for each in (SCALLION(alpha=1.0), SCAFCOM(beta=1.0))]
    for fed in feds:
        run(fed, 10)
    torch.testing.assert_close(feds[0].x, feds[1].x, atol=1e-12, rtol=1e-12)


@few
@given(sizes(), st.sampled_from([SCALLION(server_lr=1.5), SCAFCOM(beta=1.0, server_lr=1.5)]))
def test_one_step_of_everybody_is_gradient_descent(size, algorithm):
    problem = FullGradients(size.clients, size.d, seed=size.seed)
    fed, x = federation(algorithm, problem, steps=1, lr=0.1), torch.zeros(size.d, dtype=torch.float64)
    for _ in range(5):
        fed.step()
        x = x - 1.5 * 0.1 * problem.gradient(x).mean(0)
        torch.testing.assert_close(fed.x, x, atol=1e-12, rtol=1e-12)


@few
@given(sizes(), st.sampled_from([0.5, None]))
def test_a_control_is_the_mean_of_the_raw_gradients_that_the_client_has_seen(size, clip_norm):
    class Remembers(Quadratics):
        def gradients(self, y, clients, draws):
            loss, gradients = super().gradients(y, clients, draws)
            norms = gradients.norm(dim=-1, keepdim=True)
            self.seen.append(gradients * (1 if clip_norm is None else (clip_norm / (norms + 1e-6)).clamp(max=1.0)))
            return loss, gradients

    problem = Remembers(size.clients, size.d, seed=size.seed)
    fed = federation(SCALLION(), problem, steps=size.steps, clip_norm=clip_norm)
    order = torch.arange(size.clients)
    for number in range(3):
        problem.seen = []
        order = UniformConfig().cohort(torch.arange(size.clients), problem.sizes, size.clients, 0, number)
        fed.step()
    expected = torch.stack(problem.seen).mean(0)
    torch.testing.assert_close(fed.store.vectors["control"][order], expected, atol=1e-12, rtol=1e-12)


def test_without_alpha_nothing_moves():
    fed = run(federation(SCALLION(alpha=0.0), Quadratics(5, 3), cohort=2), 5)
    assert not fed.x.any()
    assert not fed.server["c"].any()
    assert not fed.store.vectors["control"].any()


class Nothing(TopK):
    """Drops everything."""

    def decode(self, payload, d):
        return super().decode(payload, d) * 0


def test_if_nothing_gets_through_only_the_clients_averages_move():
    fed = run(federation(SCAFCOM(Nothing(0.5)), Quadratics(5, 3), cohort=2), 5)
    assert not fed.x.any()
    assert not fed.server["c"].any()
    assert not fed.store.vectors["control"].any()
    assert fed.store.vectors["momentum"].any()


@few
@given(sizes())
def test_a_client_alone_takes_local_steps(size):
    problem = Quadratics(1, size.d, seed=size.seed)
    scaffold = run(federation(SCALLION(server_lr=1.5), problem, steps=size.steps), 4)
    plain = federation(FedAvg(), problem, steps=size.steps)
    for _ in range(4):
        before = plain.x
        plain.step()
        plain.server = {"x": before + 1.5 * (plain.x - before)}
    torch.testing.assert_close(scaffold.x, plain.x, atol=1e-12, rtol=1e-12)


def test_alike_clients_need_no_correction_once_all_have_been_met():
    problem = FullGradients(4, 3, alike=True)
    scaffold = run(federation(SCALLION(), problem), 1)
    average = federation(FedAvg(), problem, start=scaffold.x)
    for _ in range(4):
        scaffold.step()
        average.step()
        torch.testing.assert_close(scaffold.x, average.x, atol=1e-12, rtol=1e-12)


@few
@given(sizes(), st.sampled_from([SCALLION(), SCAFCOM()]))
def test_the_minimum_is_a_fixed_point_of_drifting_clients(size, algorithm):
    problem = FullGradients(size.clients, size.d, seed=size.seed)
    minimum = problem.minimum()
    fed = federation(algorithm, problem, size.cohort, start=minimum, steps=size.steps)
    for name in fed.store.vectors:
        fed.store.vectors[name].copy_(problem.gradient(minimum))
    run(fed, 5)
    torch.testing.assert_close(fed.x, minimum, atol=1e-10, rtol=1e-10)
    if size.clients > size.cohort and size.steps > 1:
        average = run(federation(FedAvg(), problem, size.cohort, start=minimum, steps=size.steps), 1)
        assert (average.x - minimum).norm() > 1e-6, "of which FedAvg's clients drift away"


@pytest.mark.parametrize("algorithm", [SCALLION(), SCAFCOM(beta=0.5), SCAFCOM(TopK(0.25), beta=0.5),
                                       SCALLION(RandK(0.25, unbiased=True), alpha=0.1)])  # fmt: skip
def test_few_participants_reach_the_minimum_of_all(algorithm):
    problem = FullGradients(10, 4)
    fed = run(federation(algorithm, problem, cohort=3, steps=5), 900)
    assert (fed.x - problem.minimum()).norm() < 1e-6


def test_one_step_of_everybody_with_scafcom_is_ef21_sgdm():
    problem, beta, compressor = Quadratics(5, 6), 0.3, TopK(0.34)
    fed = federation(SCAFCOM(compressor, beta=beta), problem, steps=1, lr=0.1)
    x, v, h = torch.zeros(6).double(), torch.zeros(5, 6).double(), torch.zeros(5, 6).double()
    for number in range(10):
        work = Work.of_block(problem, Plan(5, steps=1, batch_size=2, round=number), torch.arange(5))
        v = (1 - beta) * v + beta * work.gradient(x.expand(5, -1), 0)
        h = h + compressor.decode(compressor.encode(v - h), 6).double()
        x = x - 0.1 * h.mean(0)
        fed.step()
        torch.testing.assert_close(fed.x, x, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("compressor", [None, TopK(0.2), RandK(0.4, unbiased=True)])
def test_bytes_are_those_of_one_payload_up_and_two_vectors_down(compressor):
    d, cohort = 10, 3
    algorithm = SCALLION(compressor) if not isinstance(compressor, TopK) else SCAFCOM(compressor)
    report = federation(algorithm, Quadratics(6, d), cohort).step()
    assert report.bytes_up == cohort * (8 * d if compressor is None else compressor.payload_bytes(d))
    assert report.bytes_down == cohort * 2 * 8 * d
    assert report.evaluations == cohort * 3 * 2


@pytest.mark.parametrize("wrong", [{"momentum": 0.9}, {"weight_decay": 0.1}])
def test_steps_must_be_plain(wrong):
    with pytest.raises(ValueError, match="plain local steps"):
        federation(SCALLION(), Quadratics(4, 3), **wrong)
