"""Simulated equals real: one line for each strategy."""

import pytest

from disttrain.strategies import DDPCastConfig, DDPConfig, LocalConfig, Strategy


class LateMean(Strategy):
    """Mixes with what all gathered a round of three steps ago: an exchange in flight while training goes on."""

    def begin(self, x, layout, world, seed=0):
        super().begin(x, layout, world, seed)
        self.outer, self.in_flight, self.steps = world.lane("outer"), None, 0

    def mean_of_all(self, x):
        return self.outer.gather(x).mean(1)

    def after_step(self):
        self.steps += 1
        if self.steps % 3:
            return
        landed = None if self.in_flight is None else self.in_flight.take()
        self.in_flight = self.outer.start(self.mean_of_all, self.x.clone())
        if landed is not None:
            self.x.lerp_(landed, 0.5)

    def finish(self):
        return self.in_flight.take()


class LateMeanOfLent(LateMean):
    """The mistake that debug mode is for: the live parameters are lent, and training goes on."""

    def after_step(self):
        self.in_flight = self.outer.start(self.mean_of_all, self.x) if self.in_flight is None else self.in_flight


class GatheredGradients(Strategy):
    """Averages each parameter's gradients from all rows, on the lane of the gradients."""

    def reduce(self, units, gradients):
        return [self.gradients.gather(g).mean(1) for g in gradients]


def test_ddp(parity):
    parity(DDPConfig().build, tolerance=1e-6)


def test_ddp_cast_and_local(parity):
    parity(*(DDPCastConfig(dtype=dtype).build for dtype in ("bf16", "fp16")), LocalConfig().build)


def test_gathers_taken_a_round_later_and_parameter_by_parameter(parity):
    parity(LateMean, GatheredGradients)


def test_two_buckets_in_flight(parity):
    parity(DDPCastConfig().build, GatheredGradients, sizes=(2, 3), wide=True)


def test_two_workers_all_reduce_is_bitwise(parity):
    assert parity(DDPConfig().build, sizes=(2,)) == [0.0]


class KnowsWhereItRuns(Strategy):
    """Rows move a little, processes do not."""

    def after_step(self):
        self.x += 1e-6 * (len(self.x) - 1)


def test_the_harness_finds_a_difference(parity):
    with pytest.raises(AssertionError, match="rows and processes differ"):
        parity(KnowsWhereItRuns, sizes=(2,))


def test_the_harness_runs_in_debug_mode(parity):
    with pytest.raises(AssertionError, match="wrote to an argument"):
        parity(LateMeanOfLent, sizes=(2,))
