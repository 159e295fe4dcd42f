"""Error feedback: what a worker compresses instead of its gradient, so that what a payload leaves out is not lost.

Each rule is a few lines over vectors ``[L, d]`` of one parameter, where L workers live here; it knows no world. D is the mean of
what all workers sent, decoded; every worker sees the same. States are float32 (float64 for float64 gradients): in bfloat16, sums
of small payloads drift by percents within thousands of steps.

A rule reads the states ``old`` and writes ``new``, never the other way round. They change places only when every worker's
payloads were finite, so a step that all skip leaves no trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from disttrain.component import ComponentConfig, Registry
from disttrain.compression.base import Compressor, Contraction

State = Mapping[str, Tensor]


class Exchanged(Protocol):
    """What came of one parameter's payloads."""

    mean: Tensor
    """``[1, d]``, D: the mean of all workers' decoded payloads. The receiver's to write to."""

    def add_own_(self, out: Tensor, scale: float = 1.0) -> None:
        """``out [L, d] += scale ·`` what this process's workers' own payloads decode to."""


@dataclass(frozen=True)
class Feedback:
    """No feedback: the gradient is compressed as it is, and what a payload leaves out is lost."""

    local: ClassVar[tuple[str, ...]] = ()
    """Names of states ``[L, d]``, a row for each worker."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Names of states ``[1, d]``, equal on all workers."""
    means: ClassVar[Mapping[str, str]] = {}
    """For each local state, the shared one that is its mean over the workers; a local state that is not here has none."""

    def fitted_to(self, compressor: Compressor) -> Feedback:
        """This rule with the settings that depend on the compressor filled in.

        Raises:
            ValueError: if the two do not work together, saying what would.
        """
        return self

    def weights(self, size: int) -> Tensor:
        """How much each of ``size`` workers counts, ``[size]``, 1 in the mean."""
        return torch.ones(size, dtype=torch.float64)

    def start(self, g: Tensor, mean: Tensor, new: State) -> None:
        """Begin from a step in which gradients ``g [L, d]`` were averaged without compression: ``mean [1, d]``."""

    def propose(self, g: Tensor, old: State, new: State) -> Tensor:
        """What to compress, ``[L, d]``; a tensor that nobody writes to before :meth:`commit`."""
        return g

    def commit(self, exchanged: Exchanged, old: State, new: State) -> Tensor:
        """Complete ``new``; returns what the optimizer sees as the mean gradient, ``[1, d]``."""
        return exchanged.mean


class _NeedsContraction(Feedback):
    def fitted_to(self, compressor: Compressor) -> Feedback:
        """Refuses compressors that are no contraction."""
        bound = compressor.bound(2**20)
        if isinstance(bound, Contraction) and bound.delta > 0:
            return self
        remedy = "unbiased=False" if "unbiased" in vars(compressor) else "another compressor, such as int8 or block_top_k"
        raise ValueError(
            f"error feedback needs a contraction, which {type(compressor).__name__} is not ({bound}): its errors may be larger "
            f"than what is compressed, and feeding them back would blow them up; take {remedy}, or feedback none"
        )


@dataclass(frozen=True)
class EF14(_NeedsContraction):
    """Send C(e + g), keep the rest: e ← e + g − C(e + g). The optimizer sees D.

    Seide et al., "1-Bit Stochastic Gradient Descent" (Interspeech 2014); "Error Feedback Fixes SignSGD and other Gradient
    Compression Schemes" (arXiv 1901.09847), with the learning rate outside: under a schedule an old rest is applied at the new
    rate. With plain SGD of rate γ, x − γ · mean e moves exactly as uncompressed SGD does.
    """

    local: ClassVar[tuple[str, ...]] = ("error",)

    def start(self, g: Tensor, mean: Tensor, new: State) -> None:
        """Nothing was left out."""
        new["error"].zero_()

    def propose(self, g: Tensor, old: State, new: State) -> Tensor:
        """e + g."""
        return torch.add(old["error"], g, out=new["error"])

    def commit(self, exchanged: Exchanged, old: State, new: State) -> Tensor:
        """e becomes what was not sent."""
        exchanged.add_own_(new["error"], -1.0)
        return exchanged.mean


@dataclass(frozen=True)
class EF21(_NeedsContraction):
    """Send the change C(g − hᵢ) of an estimate hᵢ that all know the mean h of: hᵢ += C(g − hᵢ), h += D. The optimizer sees h.

    "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback" (arXiv 2106.05203), algorithm 2. Exact
    where workers' data differ; but noise of small batches stays in the estimates, whatever the number of workers.
    """

    local: ClassVar[tuple[str, ...]] = ("estimate",)
    shared: ClassVar[tuple[str, ...]] = ("mean_estimate",)
    means: ClassVar[Mapping[str, str]] = {"estimate": "mean_estimate"}

    def start(self, g: Tensor, mean: Tensor, new: State) -> None:
        """The gradients themselves are the first estimates."""
        new["estimate"].copy_(g)
        new["mean_estimate"].copy_(mean)

    def propose(self, g: Tensor, old: State, new: State) -> Tensor:
        """g − hᵢ."""
        return torch.sub(g, old["estimate"], out=new["estimate"])

    def commit(self, exchanged: Exchanged, old: State, new: State) -> Tensor:
        """hᵢ and h move by what was sent."""
        exchanged.add_own_(new["estimate"].copy_(old["estimate"]))
        return torch.add(old["mean_estimate"], exchanged.mean, out=new["mean_estimate"]).clone()


@dataclass(frozen=True)
class EF21W(EF21):
    """EF21 with workers weighted by how steep their losses are: wᵢ = Lᵢ / Σ L. Each compresses g/(n·wᵢ), and h is Σ wᵢhᵢ.

    "Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants" (arXiv 2402.10774), algorithm 2. With a
    compressor for which C(a·x) = a·C(x), as top-k and the scaled sign, its steps are EF21's; what the weights then show is
    that EF21 itself allows the larger step size of :func:`ef21_step_size` with ``mean="arithmetic"``.

    Args:
        smoothness: Lᵢ of every worker's loss.

    Raises:
        ValueError: unless all are positive; in :meth:`weights`, unless there is one for each worker.
    """

    smoothness: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.smoothness or min(self.smoothness) <= 0:
            raise ValueError(f"smoothness must be a positive number for each worker, got {list(self.smoothness)}")

    def weights(self, size: int) -> Tensor:
        """n · wᵢ."""
        if len(self.smoothness) != size:
            raise ValueError(f"smoothness needs a number for each of {size} workers, got {len(self.smoothness)}")
        each = torch.tensor(self.smoothness, dtype=torch.float64)
        return each * size / each.sum()


@dataclass(frozen=True)
class EF21SGDM(EF21):
    """EF21 of a moving average of gradients: vᵢ ← (1 − η)vᵢ + ηg, hᵢ += C(vᵢ − hᵢ), h += D. The optimizer sees h.

    "Momentum Provably Improves Error Feedback!" (arXiv 2305.15155), algorithm 1. The average removes the noise that EF21
    keeps; the optimizer's own momentum should then be 0.

    Args:
        eta: the newest gradient's share, in (0, 1]; 1 is EF21.

    Raises:
        ValueError: for another eta.
    """

    eta: float = 0.1
    local: ClassVar[tuple[str, ...]] = ("estimate", "momentum")

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta must be greater than 0 and at most 1, got {self.eta}")

    def start(self, g: Tensor, mean: Tensor, new: State) -> None:
        """The gradients themselves are the first averages and estimates."""
        new["momentum"].copy_(g)
        super().start(g, mean, new)

    def propose(self, g: Tensor, old: State, new: State) -> Tensor:
        """vᵢ − hᵢ."""
        momentum = torch.lerp(old["momentum"], g.to(old["momentum"].dtype), self.eta, out=new["momentum"])
        return super().propose(momentum, old, new)


@dataclass(frozen=True)
class EControl(_NeedsContraction):
    """Send C(ηe + g − hᵢ), D; then e ← e + g − hᵢ − C(…), hᵢ += C(…), h += D. The optimizer sees h.

    "EControl: Fast Distributed Optimization with Compression and Error Control" (arXiv 2311.05645), algorithm 2. hᵢ learns what
    is particular to a worker, as in EF21; e collects what the estimates have missed, as in EF14; η says how much of it flows
    back. η = 0 would be EF21. Feeding back much more than a payload can carry diverges, so η ≤ 2δ; the paper's δ / 400 behaves
    like EF21.

    Args:
        eta: η; None: the compressor's δ.

    Raises:
        ValueError: unless positive; in :meth:`fitted_to`, beyond 2δ.
    """

    eta: float | None = None
    local: ClassVar[tuple[str, ...]] = ("error", "estimate")
    shared: ClassVar[tuple[str, ...]] = ("mean_estimate",)
    means: ClassVar[Mapping[str, str]] = {"estimate": "mean_estimate"}

    def __post_init__(self) -> None:
        if self.eta is not None and not self.eta > 0:
            raise ValueError(f"eta must be greater than 0, got {self.eta}; without it EControl would be EF21: take that")

    def fitted_to(self, compressor: Compressor) -> EControl:
        """Fills in η, and refuses one that diverges."""
        super().fitted_to(compressor)
        delta = compressor.nominal_delta
        if self.eta is not None and self.eta > 2 * delta:
            raise ValueError(
                f"eta={self.eta:g} feeds back more than the compressor can send, and diverges: {type(compressor).__name__} has "
                f"δ = {delta:.4g}, so take eta ≤ 2δ = {2 * delta:.4g} (null: δ), or keep more entries"
            )
        return EControl(delta if self.eta is None else self.eta)

    def start(self, g: Tensor, mean: Tensor, new: State) -> None:
        """The gradients themselves are the first estimates, and nothing was missed."""
        new["error"].zero_()
        new["estimate"].copy_(g)
        new["mean_estimate"].copy_(mean)

    def propose(self, g: Tensor, old: State, new: State) -> Tensor:
        """ηe + g − hᵢ."""
        assert self.eta is not None, "fitted_to() fills it in"
        missing = torch.sub(g, old["estimate"], out=new["estimate"])
        torch.add(old["error"], missing, out=new["error"])
        return missing.add_(old["error"], alpha=self.eta)

    def commit(self, exchanged: Exchanged, old: State, new: State) -> Tensor:
        """hᵢ and h move by what was sent, e by what was not."""
        exchanged.add_own_(new["error"], -1.0)
        exchanged.add_own_(new["estimate"].copy_(old["estimate"]))
        return torch.add(old["mean_estimate"], exchanged.mean, out=new["mean_estimate"]).clone()


def ef21_step_size(
    smoothness: float, each: Sequence[float], delta: float, mean: Literal["quadratic", "arithmetic"] = "arithmetic"
) -> float:
    """The largest step size with which EF21 is proven to converge: γ = 1 / (L + M·ξ), ξ = (1 + √(1 − δ))/δ − 1.

    Args:
        smoothness: L, of the mean loss.
        each: Lᵢ, of every worker's loss.
        delta: δ of the compressor.
        mean: M of the Lᵢ: ``quadratic`` as in theorem 1 of arXiv 2106.05203, or ``arithmetic``, which is never larger and was
            proven enough in arXiv 2402.10774, theorem 3.

    Raises:
        ValueError: unless L, every Lᵢ and δ ≤ 1 are positive.
    """
    if smoothness <= 0 or not each or min(each) <= 0 or not 0 < delta <= 1:
        raise ValueError(f"need positive smoothness constants and 0 < delta <= 1, got {smoothness}, {list(each)}, {delta}")
    middle = sum(each) / len(each) if mean == "arithmetic" else sqrt(sum(one * one for one in each) / len(each))
    xi = (1 + sqrt(1 - delta)) / delta - 1
    return 1 / (smoothness + middle * xi)


class FeedbackConfig(ComponentConfig):
    """What every feedback's config has."""

    def build(self) -> Feedback:
        """The rule itself."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")


feedbacks: Registry[FeedbackConfig] = Registry("strategy.feedback", default="ef14")


@feedbacks.register
class NoFeedbackConfig(FeedbackConfig):
    """What a payload leaves out is lost."""

    name: Literal["none"] = "none"

    def build(self) -> Feedback:
        """The rule itself."""
        return Feedback()


@feedbacks.register
class EF14Config(FeedbackConfig):
    """What a payload leaves out is added to the next gradient."""

    name: Literal["ef14"] = "ef14"

    def build(self) -> EF14:
        """The rule itself."""
        return EF14()


@feedbacks.register
class EF21Config(FeedbackConfig):
    """Payloads are changes of an estimate of each worker's gradient."""

    name: Literal["ef21"] = "ef21"

    def build(self) -> EF21:
        """The rule itself."""
        return EF21()


@feedbacks.register
class EF21WConfig(FeedbackConfig):
    """EF21 with workers weighted by their smoothness."""

    name: Literal["ef21_w"] = "ef21_w"
    smoothness: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """Lᵢ of every worker's loss, in the workers' order."""

    def build(self) -> EF21W:
        """The rule itself."""
        return EF21W(self.smoothness)


@feedbacks.register
class EF21SGDMConfig(FeedbackConfig):
    """EF21 of a moving average of gradients; the optimizer's own momentum should be 0."""

    name: Literal["ef21_sgdm"] = "ef21_sgdm"
    eta: float = Field(0.1, gt=0, le=1)
    """The newest gradient's share of the average."""

    def build(self) -> EF21SGDM:
        """The rule itself."""
        return EF21SGDM(self.eta)


@feedbacks.register
class EControlConfig(FeedbackConfig):
    """EF21's estimates, and EF14's error fed back in small portions."""

    name: Literal["econtrol"] = "econtrol"
    eta: Annotated[float, Field(gt=0)] | None = None
    """The share of the error that flows back in a step, at most twice the compressor's δ; null: δ."""

    def build(self) -> EControl:
        """The rule itself."""
        return EControl(self.eta)
