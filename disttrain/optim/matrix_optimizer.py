"""What Muon, SOAP and COSMOS share: groups, state, stacks of equal matrices, and the step itself. Each adds its mathematics.

One optimizer holds all parameters of a model. A group says by ``algorithm`` what steps it: the optimizer's own, for matrices, or
``"adamw"``, for the rest. Matrices of one shape are stacked and computed together: ``[k, m, n]``.

State is float32 whatever the parameters' dtype (float64 for float64), exists from the start, and each tensor owns its memory.
Gradients are never written to. A step in which a gradient is not finite changes nothing at all, neither parameters nor state.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from disttrain.optim.adamw_groups import step_adamw
from disttrain.optim.blocks import Block, MoreAxes, blocks, check_shapes, gradient_of, stacked, state_dtype, unique_names
from disttrain.optim.checks import check_betas, check_choice, check_least
from disttrain.optim.groups import ParameterGroup
from disttrain.optim.sharding import Sharding, WireDtype
from disttrain.worlds.world import World

ADAMW = "adamw"
ADAMW_DEFAULTS = {"betas": (0.9, 0.95), "eps": 1e-8, "fused": None}
"""Of a group with algorithm="adamw"; its lr and weight_decay are those of the optimizer, unless the group has its own."""

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Stack:
    """Blocks of one group, shape and age, to be computed together."""

    group: dict[str, Any]
    blocks: list[Block]
    step: int
    """Which update of theirs this is, from 1."""


class MatrixOptimizer(Optimizer):
    """The base of optimizers that look at a weight matrix as a whole.

    A subclass names its ``algorithm``, checks its settings, and defines ``fresh_state``, ``direction`` and ``scale``.

    Args:
        params: parameters, or groups of them; a group may have ``algorithm="adamw"`` and every setting of its own. Or what
            ``build_param_groups(module)`` returns: AdamW steps all but the role matrix, and embeddings, norms and biases do
            not decay.
        settings: the subclass's, the defaults of its groups; among them ``lr`` and ``weight_decay``.

    Group settings that all of them know:
        more_axes: what a parameter of three axes or more is: ``"refuse"``, ``"flatten"`` (convolution) or ``"batch"`` (experts).
        split: None, or how the rows of a fused matrix (QKV) divide into matrices of their own: a number, or sizes.
        compile: whether the mathematics goes through ``torch.compile``.

    Raises:
        ValueError: for a setting out of its range, or a parameter that is no matrix.
    """

    algorithm: ClassVar[str]
    decay_follows: ClassVar[bool] = False
    """Whether weights decay after the step rather than before."""
    sharding: Sharding | None = None

    def __init__(self, params: ParamsT, **settings: Any) -> None:
        self._settings = {"more_axes": "refuse", "split": None, "compile": False} | settings
        if not isinstance(params, Tensor):  # that is torch's to refuse
            given: list[Any] = [_by_role(each) if isinstance(each, ParameterGroup) else each for each in params]
            params = given
        super().__init__(params, {"algorithm": self.algorithm})

    # --- what a subclass defines ---------------------------------------------------------------------------------------

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError unless the settings of a group of matrices make sense."""
        raise NotImplementedError

    def fresh_state(self, shape: tuple[int, ...], group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what is kept for a block ``[..., m, n]``, all zero at first."""
        raise NotImplementedError

    def direction(self, g: Tensor, state: State, stack: Stack) -> tuple[Tensor | None, State]:
        """Where a stack of matrices goes, and what is kept.

        Args:
            g: gradients ``[k, m, n]``; stay as they are.
            state: ``[k, ...]`` each; may be written to.
            stack: whose they are.

        Returns:
            ``[k, m, n]``, of which :meth:`scale` times the learning rate is subtracted (None: nothing moves), and the new state;
            entries left out stay.
        """
        raise NotImplementedError

    def scale(self, m: int, n: int, group: dict[str, Any]) -> float:
        """What the direction is multiplied by, besides the learning rate."""
        raise NotImplementedError

    # --- groups and state ------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with its state.

        Raises:
            ValueError: as the constructor does; nothing is added then.
        """
        if self.sharding is not None:
            raise ValueError("add groups before shard(): the work is dealt out already")
        group = dict(param_group)
        algorithm = group.setdefault("algorithm", self.algorithm)
        if algorithm not in (self.algorithm, ADAMW):
            raise ValueError(f"algorithm={algorithm!r}: a group of {type(self).__name__} has {self.algorithm!r} or {ADAMW!r}")
        own = self._settings if algorithm == self.algorithm else ADAMW_DEFAULTS | _shared(self._settings)
        if unknown := sorted(group.keys() - own.keys() - KNOWN):
            raise ValueError(f"a group with algorithm={algorithm!r} has no {unknown[0]!r}; it knows {', '.join(sorted(own))}")
        super().add_param_group(own | group)
        group = self.param_groups[-1]
        given = group.get("param_names") or [f"parameter {i + 1}" for i in range(len(group["params"]))]
        group["names"] = unique_names(given, {name for each in self.param_groups[:-1] for name in each["names"]})
        try:
            self._admit(group)
        except Exception:
            self.param_groups.pop()
            raise

    def _admit(self, group: dict[str, Any]) -> None:
        if not (float(group["lr"]) >= 0 and group["weight_decay"] >= 0):
            raise ValueError(f"lr={group['lr']} and weight_decay={group['weight_decay']} must be at least 0")
        if odd := [name for name, p in zip(group["names"], group["params"], strict=True) if not p.is_floating_point()]:
            raise ValueError(f"{odd[0]} is not of a real floating-point dtype")
        if group["algorithm"] == ADAMW:
            check_betas(group["betas"])
            check_least(group, "eps", 0)
        else:
            check_choice(group, "more_axes", get_args(MoreAxes))
            check_shapes(group)
            self.check(group)
        for parameter in group["params"]:
            self.state[parameter] = {}
        for parameter, entries in self._fresh(group):
            self.state[parameter] |= entries

    def _fresh(self, group: dict[str, Any]) -> Iterator[tuple[Tensor, State]]:
        """Zero state for every parameter of a group, block by block where a block is stepped here."""
        if group["algorithm"] == ADAMW:
            for parameter in group["params"]:
                zeros = functools.partial(torch.zeros_like, parameter, dtype=state_dtype(parameter))
                step = torch.zeros((), device=parameter.device if group["fused"] else "cpu")  # where torch's kernel looks for it
                yield parameter, {"step": step, "exp_avg": zeros(), "exp_avg_sq": zeros()}
            return
        for block in blocks(group):
            if self.sharding is not None and not self.sharding.owns(block.name):
                continue
            options: dict[str, Any] = {"dtype": state_dtype(block.parameter), "device": block.parameter.device}
            shapes = self.fresh_state(block.shape, group)
            entries = {f"{entry}{block.suffix}": torch.zeros(shape, **options) for entry, shape in shapes.items()}
            yield block.parameter, {f"step{block.suffix}": torch.tensor(0.0), **entries}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict()`` returned, in the dtypes in which it was kept.

        Raises:
            ValueError: if a group has another algorithm, or some state is missing or of another shape (as with another
                ``rank``); nothing is loaded then.
        """
        saved = self._by_parameter(state_dict)
        self._check_loadable(saved, state_dict["param_groups"])
        own = [{key: group[key] for key in STRUCTURE if key in group} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, kept in zip(self.param_groups, own, strict=True):
            group.update(kept)
            for parameter in group["params"]:
                self.state[parameter] = {}
            for parameter, entries in self._fresh(group):
                held = saved.get(parameter, {})
                self.state[parameter] |= {entry: _copied(held.get(entry), fresh) for entry, fresh in entries.items()}

    def _by_parameter(self, state_dict: dict[str, Any]) -> dict[Tensor, dict[str, Any]]:
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        found = dict(zip(numbers, parameters, strict=False))  # torch complains of another number of them
        return {found[number]: entries for number, entries in state_dict["state"].items() if number in found}

    def _check_loadable(self, saved: dict[Tensor, dict[str, Any]], groups: list[dict[str, Any]]) -> None:
        for group, other in zip(self.param_groups, groups, strict=False):
            if other.get("algorithm") != group["algorithm"]:  # state of one name need not be the same thing
                raise ValueError(
                    f"the state to load is of {other.get('algorithm')!r}, this optimizer's of {group['algorithm']!r}"
                )
        sizes = [[len(group["params"]) for group in each] for each in (self.param_groups, groups)]
        if not saved or sizes[0] != sizes[1]:
            return  # everything starts anew; or torch refuses it
        for group in self.param_groups:
            names = dict(zip(group["params"], group["names"], strict=True))
            for parameter, entries in self._fresh(group):
                for entry, fresh in entries.items():
                    held = saved.get(parameter, {}).get(entry)
                    if not isinstance(held, Tensor):
                        raise ValueError(
                            f"{names[parameter]}: the state to load has no {entry}; was it split otherwise, or dealt out?"
                        )
                    if held.shape != fresh.shape:
                        raise ValueError(f"{names[parameter]}: {self.mismatch(entry, held, fresh)}")

    def mismatch(self, entry: str, saved: Tensor, fresh: Tensor) -> str:
        """What to say of an entry of state that has another shape than this optimizer's."""
        return f"the state to load has {entry} {list(saved.shape)} where this optimizer has {list(fresh.shape)}"

    def __getstate__(self) -> dict[str, Any]:
        if self.sharding is not None:
            raise ValueError("an optimizer whose work is dealt out cannot be copied or pickled: other workers keep its state")
        return {**super().__getstate__(), "_settings": self._settings}

    def __deepcopy__(self, memo: dict[int, Any]) -> MatrixOptimizer:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(deepcopy(self.__getstate__(), memo))
        return copied

    def block_shapes(self, group: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape ``[..., m, n]`` of every block of a group."""
        return [(block.name, block.shape) for block in blocks(group)]

    # --- the step ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient; none if a gradient is not finite (which waits for a GPU once)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not _finite(p.grad for group in self.param_groups for p in group["params"] if p.grad is not None):
            return loss
        for group in self.param_groups:
            if group["algorithm"] == ADAMW:
                step_adamw(group, self.state)
        moves = {name: move for stack in self._stacks() for name, move in self._advance(stack)}
        if self.sharding is not None:
            moves = self.sharding.exchange(moves)
        for group, alike in self._by_shape():
            if moving := [block for block in alike if block.name in moves]:
                self._move(group, moving, moves)
        return loss

    def _by_shape(self) -> Iterator[tuple[dict[str, Any], list[Block]]]:
        """All blocks, by group and shape of their matrices."""
        for group in self.param_groups:
            if group["algorithm"] == ADAMW:
                continue
            alike: dict[Any, list[Block]] = {}
            for block in blocks(group):
                alike.setdefault((block.matrix, block.parameter.dtype, block.parameter.device), []).append(block)
            yield from ((group, each) for each in alike.values())

    def _stacks(self) -> Iterator[Stack]:
        """What is to be computed here: blocks with a gradient, of this worker's if they are dealt out."""
        for group, alike in self._by_shape():
            by_age: dict[int, list[Block]] = {}
            for block in alike:
                if block.parameter.grad is not None and (self.sharding is None or self.sharding.owns(block.name)):
                    age = int(self.state[block.parameter][f"step{block.suffix}"])
                    by_age.setdefault(age, []).append(block)
            yield from (Stack(group, each, age + 1) for age, each in by_age.items())

    def _advance(self, stack: Stack) -> list[tuple[str, Tensor]]:
        """Take the gradients in; the direction ``[count, m, n]`` of each block by its name, if there is one yet."""
        states = [self.state[block.parameter] for block in stack.blocks]
        shapes = self.fresh_state(stack.blocks[0].shape, stack.group)
        dtype = state_dtype(stack.blocks[0].parameter)
        g = stacked([block.of(gradient_of(block.parameter)).to(dtype) for block in stack.blocks])
        state = {
            entry: stacked([_as_stack(each[entry + block.suffix]) for each, block in zip(states, stack.blocks, strict=True)])
            for entry in shapes
        }
        moved, new = self.direction(g, state, stack)
        counts = [block.count for block in stack.blocks]
        for entry, value in new.items():
            for each, block, part in zip(states, stack.blocks, torch.split(value, counts), strict=True):
                held = each[entry + block.suffix]
                if held.data_ptr() != part.data_ptr():
                    held.copy_(part.view(held.shape))
        for each, block in zip(states, stack.blocks, strict=True):
            each[f"step{block.suffix}"] += 1
        if moved is None:
            return []
        return [(block.name, part) for block, part in zip(stack.blocks, torch.split(moved, counts), strict=True)]

    def _move(self, group: dict[str, Any], alike: list[Block], moves: dict[str, Tensor]) -> None:
        """Decay and step blocks of one shape along their directions."""
        parts, updates = [block.part for block in alike], [block.shaped(moves[block.name]) for block in alike]
        lr, decay = float(group["lr"]), 1 - float(group["lr"]) * group["weight_decay"]
        if not self.decay_follows:
            torch._foreach_mul_(parts, decay)
        torch._foreach_add_(parts, updates, alpha=-lr * self.scale(*alike[0].matrix, group))
        if self.decay_follows:
            torch._foreach_mul_(parts, decay)

    # --- dealing the work out ----------------------------------------------------------------------------------------------

    def shard(self, world: World, dtype: WireDtype = "bfloat16") -> None:
        """Deal the matrices to the workers of ``world``, whose gradients are the same: each computes, and keeps the state of,
        its own, and all directions are gathered once a step.

        Args:
            world: a lane of its own is not needed: the step waits for it.
            dtype: of the directions on the wire; everybody, their owner too, applies what went over it.
        """
        if all(group["algorithm"] == ADAMW for group in self.param_groups):
            raise ValueError("there is no matrix to deal out")
        all_blocks = [(block, self.cost(block, group)) for group, alike in self._by_shape() for block in alike]
        matrices = {block.name: ((block.count, *block.matrix), cost) for block, cost in all_blocks}
        self.sharding = Sharding(world, matrices, dtype, all_blocks[0][0].parameter.device)
        for group in self.param_groups:
            if group["algorithm"] != ADAMW:
                kept = {parameter: self.state[parameter] for parameter in group["params"]}
                self.state.update({parameter: {} for parameter in group["params"]})
                for parameter, entries in self._fresh(group):
                    self.state[parameter] |= {entry: kept[parameter][entry] for entry in entries}

    def whole_state(self) -> dict[Tensor, dict[str, Tensor]]:
        """All state by parameter, also what other workers keep; if the work is dealt out, every worker is to call it."""
        if self.sharding is None:
            return dict(self.state)
        own, shapes = {}, {}
        for group, alike in self._by_shape():
            for block in alike:
                entries = {"step": (), **self.fresh_state(block.shape, group)}
                shapes[block] = {f"{entry}{block.suffix}": shape for entry, shape in entries.items()}
                if self.sharding.owns(block.name):
                    own[block.name] = _row([self.state[block.parameter][entry] for entry in shapes[block]])
        numels = {block.name: sum(map(math.prod, entries.values())) for block, entries in shapes.items()}
        double = any(block.parameter.dtype == torch.float64 for block in shapes)
        rows = self.sharding.gather(own, numels, torch.float64 if double else torch.float32)
        whole = {parameter: dict(state) for parameter, state in self.state.items()}
        for block, entries in shapes.items():
            parts = torch.split(rows[block.name], [math.prod(shape) for shape in entries.values()])
            whole[block.parameter] |= {
                entry: _as_kept(part.view(shape), block) for (entry, shape), part in zip(entries.items(), parts, strict=True)
            }
        return whole

    def cost(self, block: Block, group: dict[str, Any]) -> float:
        """What a step of a block costs, in any unit: here the products of Newton–Schulz."""
        m, n = sorted(block.matrix)
        return float(block.count * m * m * (2 * n + m))


STRUCTURE = ("names", "more_axes", "split")
"""Settings of a group that its state is laid out by: those of a state dict are not taken over."""
KNOWN = frozenset({"params", "algorithm", "role", "lr", "weight_decay", "param_names"})


def _by_role(group: ParameterGroup) -> dict[str, Any]:
    spared = {} if group.decays("matrices") else {"weight_decay": 0.0}
    return group.for_torch(**({} if group.role == "matrix" else {"algorithm": ADAMW, **spared}))


def _shared(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in ("lr", "weight_decay")}


def _row(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1).to(tensors[-1].device) for tensor in tensors])


def _as_kept(value: Tensor, block: Block) -> Tensor:
    """A gathered entry of state as its owner has it: the step on the CPU."""
    return value.to(state_dtype(block.parameter), copy=True) if value.ndim else value.to("cpu", torch.float32, copy=True)


def _as_stack(value: Tensor) -> Tensor:
    return value.reshape(-1, *value.shape[-2:])


def _copied(saved: Any, fresh: Tensor) -> Tensor:
    """Saved state in its own dtype; fresh where there is none."""
    if saved is None:
        return fresh
    assert isinstance(saved, Tensor)
    return saved.to(fresh.device, fresh.dtype, copy=True)


def _finite(gradients: Iterable[Tensor]) -> bool:
    """Whether all entries are finite, and their squares, which all second moments are made of, do not overflow."""
    entries = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    wide = [torch.float64 if each.dtype == torch.float64 else torch.float32 for each in entries]
    norms = [torch.linalg.vector_norm(each, dtype=dtype) for each, dtype in zip(entries, wide, strict=True)]
    return not norms or bool(torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms]).isfinite().all())
