"""Strategy `compressed` on float64 gradients: nothing between a payload and the mean is rounded to float32."""

import pytest
import torch

from disttrain.compression import EF21, BlockTopK, Cast, EControl, TopK
from disttrain.parameters import Layout, Unit
from disttrain.strategies.compressed import Compressed
from disttrain.worlds import StackedWorld

FP32 = Cast("fp32")  # what is sent may be rounded; the estimates then learn the rest


@pytest.mark.parametrize("feedback", [EF21(), EControl()])
@pytest.mark.parametrize("compressor", [TopK(0.2, FP32), BlockTopK(2, 10, FP32)])
def test_the_mean_estimate_is_the_estimates_mean(feedback, compressor):
    layout, generator = Layout((Unit("x", (20,), 0),), 20), torch.Generator().manual_seed(0)
    strategy = Compressed(compressor, feedback, "gather", warmup_steps=1)
    strategy.begin(torch.zeros(10, 20, dtype=torch.float64), layout, StackedWorld(10))  # a tenth is not a float32
    for _ in range(50):
        strategy.reduce(layout.units, [torch.randn(10, 20, generator=generator, dtype=torch.float64)])
    estimates, mean = strategy.local["estimate"], strategy.shared["mean_estimate"]
    assert mean.dtype == torch.float64
    torch.testing.assert_close(mean, estimates.mean(0, keepdim=True), rtol=1e-13, atol=1e-13)
