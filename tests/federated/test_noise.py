"""Noisy links: what is added, to what, and who refuses it."""

import pytest
import torch

from disttrain.compression import TopK
from disttrain.federated import (
    MIFA,
    RERCE,
    SCAFCOM,
    SCALLION,
    Availability,
    ContinualRERCE,
    FedAMD,
    FedAvg,
    FedDyn,
    FedPAGE,
    Plan,
    Work,
)
from tests.federated.quadratics import FullGradients, Quadratics, federation, run

TOLERANT = {"fedavg": FedAvg(), "fedamd": FedAMD(0.5), "mifa": MIFA(), "fedpage": FedPAGE(0.5),
            "rerce": RERCE(0.5), "rerce_continual": ContinualRERCE(0.5)}  # fmt: skip
ADDING = {"scaffold": SCALLION(), "scafcom": SCAFCOM(TopK(0.2)), "feddyn": FedDyn(0.5)}


def test_noise_is_normal_and_drawn_anew_for_each_vector_client_and_round():
    problem, d = Quadratics(5, 1), 4000
    problem.d = d

    def noises(number):
        work = Work.of_block(problem, Plan(5, noise_up=0.25, noise_down=4.0, round=number), torch.arange(5))
        message = {"x": torch.zeros(d, dtype=torch.float64), "c": torch.zeros(d, dtype=torch.float64)}
        down = work.receive(message)
        sent = [work.send(torch.zeros(5, d, dtype=torch.float64), number=each).values for each in range(2)]
        return torch.cat([down["x"], down["c"]]), torch.cat(sent)

    down, up = noises(3)
    for rows, deviation in ((down, 2.0), (up, 0.5)):
        assert float(rows.std()) == pytest.approx(deviation, rel=0.01)
        assert abs(float(rows.mean())) < 0.02 * deviation
    rows = torch.cat([down, up, *noises(4)])
    correlations = torch.corrcoef(rows) - torch.eye(len(rows), dtype=torch.float64)
    assert correlations.abs().max() < 0.09, "none is another's"
    assert all(torch.equal(*pair) for pair in zip(noises(3), (down, up), strict=True)), "but it repeats"


@pytest.mark.parametrize("name", TOLERANT)
@pytest.mark.parametrize("serial", [True, False])
def test_a_run_over_noisy_links_repeats_in_whatever_blocks_and_resumes_to_the_bit(name, serial):
    def build(engine=serial):
        who = Availability(5, dropout=0.2)
        noise = {"noise_up": 0.01, "noise_down": 0.02}
        return federation(TOLERANT[name], Quadratics(9, 4), availability=who, block_size=3, serial=engine, **noise)

    whole, half = run(build(), 6), run(build(), 2)
    other = build()
    other.restore(*half.state())
    assert torch.equal(whole.x, run(other, 4).x)
    torch.testing.assert_close(whole.x, run(build(not serial), 6).x, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("algorithm", "mean", "kept"), [(FedAMD(0.5), "mean_cache", "cache"), (MIFA(), "mean_memory", "memory")])
def test_what_the_server_remembers_is_what_it_has_received(algorithm, mean, kept):
    fed = run(federation(algorithm, Quadratics(8, 4), cohort=3, noise_up=0.5, noise_down=0.5), 6)
    torch.testing.assert_close(fed.server[mean], fed.store.vectors[kept].mean(0), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ADDING)
def test_noise_upwards_is_refused_where_it_would_add_up(name):
    with pytest.raises(ValueError, match="would add up at the server alone"):
        federation(ADDING[name], Quadratics(4, 3), noise_up=0.1)


@pytest.mark.parametrize(
    ("algorithm", "total", "kept"),
    [(SCALLION(), "c", "control"), (SCAFCOM(TopK(0.3)), "c", "control"), (FedDyn(0.5), "h", "gradient")],
)
def test_noise_downwards_leaves_what_server_and_clients_keep_in_step(algorithm, total, kept):
    fed = run(federation(algorithm, Quadratics(8, 4), cohort=3, noise_down=0.5), 6)
    torch.testing.assert_close(fed.server[total], fed.store.vectors[kept].mean(0), atol=1e-10, rtol=1e-10)


def test_noise_on_scaffolds_c_cancels():
    """A client adds the c that it has heard to every step and takes it away from what it sends."""
    problem = FullGradients(6, 3)
    fed = run(federation(SCALLION(), problem, steps=1, noise_down=0.3), 1)
    work = Work.of_block(problem, fed.plan, torch.arange(6))
    heard = work.receive({"x": torch.zeros(3).double(), "c": torch.zeros(3).double()})["x"]
    gradients = problem.gradients(heard, torch.arange(6), None)[1]
    torch.testing.assert_close(fed.store.vectors["control"], gradients, atol=1e-12, rtol=1e-12)


def test_the_means_error_is_that_of_the_mean_of_all_noises():
    problem = FullGradients(50, 400, rows=400)
    exact, noisy = (run(federation(FedAvg(), problem, steps=1, noise_up=noise), 1).x for noise in (0.0, 1.0))
    assert float((noisy - exact).square().mean()) == pytest.approx(1 / 50, rel=0.3)


def test_payloads_do_not_travel_over_noisy_links():
    work = Work.of_block(Quadratics(2, 3), Plan(2, noise_up=0.1), torch.arange(2))
    with pytest.raises(ValueError, match="not to a compressor's payload"):
        work.send(torch.zeros(2, 3), TopK(0.5))
