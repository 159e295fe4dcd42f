"""RERCE-Fed: consensus by ADMM over noisy links, without dual variables.

"Noise-Robust and Resource-Efficient ADMM-based Federated Learning" (arXiv 2409.13451). Two consecutive steps of ADMM for
min Σ f_k(x_k) with all x_k = z, subtracted, eliminate the duals, and with them one of two noisy vectors that travel::

    round 0, all clients:  x_k ← argmin f_k(x) + ρ/2 ‖x − x_0‖²;   z⁻ = x_0
    down: s
    client:  x_k ← argmin f_k(x) − ⟨∇f_k(x_k), x⟩ + ρ/2 ‖x − s‖²;     up: x_k
    server:  z ← mean of those that answered;   s ← 2 z − z⁻

For least squares that is the paper's x_k ← (I − ρB_k) x_k + ρB_k s with B_k = (H_kᵀW_kH_k + ρI)⁻¹, which a problem that offers
closed forms gets with ``exact``. Any other loss is minimised inexactly, with a dual variable g_k in the place of ∇f_k(x_k)::

    y ← s;   K times:  y ← y − η_l (∇f_k(y; ξ) − g_k + ρ (y − s));      x_k ← y;   g_k ← g_k − ρ (x_k − s),  at first 0

After an exact minimisation the two are the same. After K steps they are not, and it must be g_k: rounds of everybody conserve
Σ g_k + ρ N (z − z⁻) = 0, so where all comes to rest Σ ∇f_k is 0, however few the steps. With ∇f_k(x_k) in its place, models that
are the same for all stay what they are after the first round, and a network learns nothing.

*Continual local updates*, for few participants: a client goes on, in every round in which it is not asked, with the last s that
it has heard, and the server counts those that are not asked with the last that it has heard of them::

    down: w
    client:  x⁻ ← x_k;   x_k as above, with s = w;     up: s_k = 2 x_k − x⁻
    server:  w ← (1/N) Σ over all N of the last s_k

With everybody, both are dual ADMM. Here a client catches up when it is asked again, which comes to the same.

Beware of few participants. In closed form, any x that all clients share is a fixed point, whether or not it minimises anything:
what picks the minimum is Σ B_k⁻¹ x_k − ρ N z⁻, which rounds of everybody conserve and other rounds, and noise, let drift, as they
do Σ g_k. The drift is small where ρ is small against the curvature of f_k, the paper's setting, and not otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from disttrain.federated.algorithm import Algorithm, AlgorithmConfig, Replies, Reply, Vectors, federated_algorithms
from disttrain.federated.local_steps import descend
from disttrain.federated.work import Plan, Work


@dataclass(frozen=True)
class RERCE(Algorithm):
    """Dual-free ADMM.

    Args:
        rho: ρ, how strongly clients are held together.
        exact: minimise in closed form.

    Raises:
        ValueError: unless ρ is positive.
    """

    rho: float = 1.0
    exact: bool = False
    meets_everybody: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho must be positive, got {self.rho}")
        object.__setattr__(self, "client_vectors", self.kept)

    @property
    def kept(self) -> tuple[str, ...]:
        """What a client needs of the round before: the closed form its model, and the inexact one its dual."""
        return ("model",) if self.exact else ("dual",)

    def init(self, x: Tensor) -> Vectors:
        """z, and s."""
        return {"x": x.clone(), "s": x.clone()}

    def broadcast(self, server: Vectors) -> Vectors:
        """s alone."""
        return {"s": server["s"]}

    def warning(self, plan: Plan) -> str:
        """That noise is for the closed form."""
        if self.exact or not (plan.noise_up or plan.noise_down):
            return ""
        return "with local steps, noise of the links adds up in the duals that clients keep: compare with fedavg"

    def client(self, message: Vectors, state: Vectors, work: Work) -> tuple[Reply, Vectors]:
        """The bent local problem, around what was heard of s."""
        model, kept = self.move(state, message["s"], work)
        return {"model": work.send(model)}, kept

    def move(self, state: Vectors, s: Tensor, work: Work, number: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The next model of each client, given s, and what it keeps; ``number`` tells a round's moves of one client apart."""
        if self.exact:
            return self._exactly(state["model"], s, work)
        dual = state["dual"]
        model = descend(s, work, lambda gradient, y: gradient - dual + self.rho * (y - s), number * work.plan.steps)
        return model, {"dual": dual - self.rho * (model - s)}

    def _exactly(self, model: Tensor, s: Tensor, work: Work) -> tuple[Tensor, dict[str, Tensor]]:
        if work.plan.round == 0:
            model = work.exact().minimise(work.clients, s, self.rho)
        else:
            model = work.exact().move(work.clients, model, s, self.rho, torch.ones(len(work), dtype=model.dtype))
        return model, {"model": model}

    def aggregate(self, server: Vectors, replies: Replies, plan: Plan) -> Vectors:
        """The mean of what arrived, and where it is heading."""
        z = replies["model"].mean
        return {"x": z, "s": 2 * z - server["x"]}


@dataclass(frozen=True)
class ContinualRERCE(RERCE):
    """Clients that are not asked go on, and the server remembers them."""

    @property
    def kept(self) -> tuple[str, ...]:
        """For their next move, and to make up for those that they have missed."""
        return ("model", *(() if self.exact else ("dual",)), "heard", "memory")

    def client_numbers(self, sizes: Tensor) -> Vectors:
        """How many rounds each client has made."""
        return {"rounds": torch.zeros(len(sizes), 1)}

    def init(self, x: Tensor) -> Vectors:
        """w, and the mean of all memories, none as yet."""
        return {"x": x.clone(), "mean_memory": torch.zeros_like(x)}

    def broadcast(self, server: Vectors) -> Vectors:
        """w alone."""
        return {"x": server["x"]}

    def client(self, message: Vectors, state: Vectors, work: Work) -> tuple[Reply, Vectors]:
        """All rounds since the client was last asked, and this one."""
        w, number = message["x"], work.plan.round
        before = {**state, "model": w} if number == 0 else self.caught_up(state, work)
        model, moved = self.move(before, w, work)
        sent = work.send(2 * model - before["model"])
        change = replace(sent, values=sent.values - state["memory"])  # the server has the old ones
        rounds = torch.full_like(state["rounds"], number + 1)
        return {"change": change}, {**moved, "model": model, "heard": w, "memory": sent.values, "rounds": rounds}

    def caught_up(self, state: Vectors, work: Work) -> dict[str, Tensor]:
        """The clients' own vectors ``[L, d]`` before the round: those not asked have gone on with what they had heard."""
        state, heard, missed = dict(state), state["heard"], work.plan.round - state["rounds"][:, 0]
        if self.exact:
            return state | {"model": work.exact().move(work.clients, state["model"], heard, self.rho, missed)}
        state |= {name: state[name].clone() for name in ("model", "dual")}
        for number in range(int(missed.max())):
            late = missed > number
            own = {name: each[late] for name, each in state.items()}
            state["model"][late], moved = self.move(own, heard[late], work.among(late), number + 1)
            state["dual"][late] = moved["dual"]
        return state

    def aggregate(self, server: Vectors, replies: Replies, plan: Plan) -> Vectors:
        """The mean of all memories, those just renewed among them."""
        mean = server["mean_memory"] + replies["change"].vector / plan.num_clients
        return {"x": mean.clone(), "mean_memory": mean}  # two tensors, for a checkpoint holds no aliases


@federated_algorithms.register
class RERCEConfig(AlgorithmConfig):
    """ADMM without dual variables, for noisy links (arXiv 2409.13451); each local problem is solved by the local steps."""

    name: Literal["rerce"] = "rerce"
    rho: float = Field(1.0, gt=0)
    """ρ, how strongly clients are held together."""

    def build(self) -> RERCE:
        """The algorithm itself."""
        return RERCE(self.rho)


@federated_algorithms.register
class ContinualRERCEConfig(RERCEConfig):
    """rerce whose clients go on computing while they are not asked, and are remembered (arXiv 2409.13451)."""

    name: Literal["rerce_continual"] = "rerce_continual"  # type: ignore[assignment]

    def build(self) -> ContinualRERCE:
        """The algorithm itself."""
        return ContinualRERCE(self.rho)
