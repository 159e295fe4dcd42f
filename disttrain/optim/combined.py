"""Several optimizers that behave as one: to schedulers, checkpoints, scalers and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class CombinedOptimizer(Optimizer):
    """One optimizer made of several with disjoint parameters.

    ``param_groups`` holds the parts' own dicts, one part after the other, so that a scheduler that writes ``lr`` there
    reaches the part. ``state_dict`` is laid out like a single optimizer's, with parameters numbered over all groups.

    Args:
        parts: the optimizers, stepped in this order. They belong to the whole from now on: do not load into one, nor
            add groups to it, behind its back.

    Raises:
        ValueError: if there is no part, or a parameter is in two.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        if not parts:
            raise ValueError("a combined optimizer needs at least one optimizer to combine")
        super().__init__(_groups(parts), defaults={})
        self.parts = list(parts)
        self.state = _States(self.parts)  # type: ignore[assignment]  # a view: every part keeps its own

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every part once, in order; ``closure`` is called once before, with gradients enabled."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict()`` of an optimizer over the same groups returned.

        Every part loads its own share, since how state is cast is the part's business.

        Raises:
            ValueError: if the groups are other in number or size; nothing is loaded then.
        """
        state_dict = state_dict.copy()  # hooks may write to it
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self._check_sizes(state_dict["param_groups"])
        for part, share in zip(self.parts, self._shares(state_dict), strict=True):
            part.load_state_dict(share)
        self.param_groups = _groups(self.parts)  # torch puts new dicts into a part that loads
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: nothing says which of the parts should take it.

        Raises:
            TypeError: always, once the optimizer is built.
        """
        if hasattr(self, "parts"):  # before that, it is torch's constructor that adds the groups
            raise TypeError("a combined optimizer takes no further groups: add yours to a part before combining")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    def _check_sizes(self, saved: list[dict[str, Any]]) -> None:
        sizes = [len(group["params"]) for group in self.param_groups]
        saved_sizes = [len(group["params"]) for group in saved]
        if sizes != saved_sizes:
            raise ValueError(f"the state has groups of {saved_sizes} parameters, this optimizer groups of {sizes}")

    def _shares(self, state_dict: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The state dict of each part; parameters keep their numbers, since torch only matches them up."""
        groups = iter(state_dict["param_groups"])
        for part in self.parts:
            mine = [next(groups) for _ in part.param_groups]
            numbers = {number for group in mine for number in group["params"]}
            state = {number: state for number, state in state_dict["state"].items() if number in numbers}
            yield {"state": state, "param_groups": mine}


class _States(MutableMapping[Tensor, dict[str, Any]]):
    """The states of all parts, looked up by parameter.

    Not a ChainMap: looking up a parameter in the wrong part's defaultdict would create an empty state there.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = parts
        self._owner = {p: part for part in parts for group in part.param_groups for p in group["params"]}

    def __getitem__(self, parameter: Tensor) -> dict[str, Any]:
        return self._owner[parameter].state[parameter]  # type: ignore[no-any-return]

    def __setitem__(self, parameter: Tensor, state: dict[str, Any]) -> None:
        self._owner[parameter].state[parameter] = state

    def __delitem__(self, parameter: Tensor) -> None:
        del self._owner[parameter].state[parameter]

    def __iter__(self) -> Iterator[Tensor]:
        for part in self._parts:
            yield from part.state

    def __len__(self) -> int:
        return sum(len(part.state) for part in self._parts)

    def __contains__(self, parameter: object) -> bool:
        return any(parameter in part.state for part in self._parts)


def _groups(parts: Sequence[Optimizer]) -> list[dict[str, Any]]:
    return [group for part in parts for group in part.param_groups]
