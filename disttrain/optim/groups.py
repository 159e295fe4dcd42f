"""What each parameter of a module is, and so how an optimizer should treat it.

A weight matrix may be orthogonalised and should decay; an embedding's rows are looked up one by one; a norm's gain
wants neither. Shape alone does not tell them apart (an embedding of bytes, ``[256, 64]``, looks like an up-projection),
so the module is asked: the type of the layer that owns a parameter decides first, its shape second, names last.

    =========  ==================================================================================================
    embedding  owned by nn.Embedding or EmbeddingBag; or a tensor of two axes or more in a class named "…embed…", or
               itself named like ``pos_emb``
    head       the output projection (see ``find_head``); one that is tied to an embedding is an embedding
    norm       owned by a LayerNorm, RMSNorm, BatchNorm, GroupNorm, InstanceNorm, or a vector in a class named "…norm…"
    bias       every other vector or scalar: biases, layer scales, gates
    conv       owned by a convolution; three axes or more
    other      every other tensor of three axes or more, such as stacked experts
    matrix     every other tensor of two axes: ``[out, in]`` of Linear and its like
    =========  ==================================================================================================

When a parameter has several owners the upper row wins: a head tied to an embedding is an embedding, never a matrix; a
weight that two Linears share stays a matrix. Groups depend on the module alone, so every rank finds the same ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from disttrain.component import UserError

Role = Literal["embedding", "head", "norm", "bias", "conv", "other", "matrix"]
ROLES: tuple[Role, ...] = get_args(Role)

Decay = Literal["matrices", "weights", "all"]
NO_DECAY: dict[Decay, frozenset[Role]] = {
    "matrices": frozenset({"embedding", "norm", "bias"}),
    "weights": frozenset({"norm", "bias"}),
    "all": frozenset(),
}
"""The roles that weight decay spares, for each choice of ``decay``. ``all`` is what torch does when it is handed
``module.parameters()``."""

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)  # _NormBase: all batch and instance norms


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """The trainable parameters of one role, in the module's own order."""

    role: Role
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]

    def decays(self, decay: Decay) -> bool:
        """Whether weight decay applies to this group under the rule ``decay``."""
        return self.role not in NO_DECAY[decay]

    def for_torch(self, **settings: Any) -> dict[str, Any]:
        """This group as an entry of a torch optimizer's ``param_groups``, names and role included."""
        return {"params": list(zip(self.names, self.parameters, strict=True)), "role": self.role, **settings}


def decayed_groups(groups: Iterable[ParameterGroup], weight_decay: float, decay: Decay) -> list[dict[str, Any]]:
    """Torch's form of ``groups``, each with ``weight_decay`` or, where ``decay`` spares it, with 0."""
    return [group.for_torch(weight_decay=weight_decay if group.decays(decay) else 0.0) for group in groups]


def build_param_groups(module: nn.Module, roles: Mapping[str, Role] | None = None) -> list[ParameterGroup]:
    """Sort every trainable parameter of ``module`` into exactly one group; frozen ones are left out.

    Args:
        module: any module, not yet wrapped by DDP (which would prefix the names).
        roles: corrections: a parameter's name, or a pattern such as ``"experts.*.router.weight"``, and its role. The
            first pattern that matches wins.

    Returns:
        One group per role that occurs, in the order of ``ROLES``.

    Raises:
        UserError: if nothing is trainable, a pattern matches no trainable parameter, or a ``matrix`` has not two axes.
    """
    found = [each for each in _parameters(module) if each.parameter.requires_grad]
    if not found:
        raise UserError(f"{type(module).__name__} has no trainable parameter: nothing for an optimizer to do")
    _correct(found, roles or {})
    members = {role: [each for each in found if each.role == role] for role in ROLES}
    assert sum(map(len, members.values())) == len(found), "a parameter has no role"
    return [_group(role, each) for role, each in members.items() if each]


def find_head(module: nn.Module) -> nn.Module | None:
    """The output projection of a language model, or None.

    A transformers model says which it is (``get_output_embeddings``). Otherwise it is the Linear registered last, if it
    has one output per entry of some embedding's vocabulary. The last only: with 256 bytes and width 64 every MLP's
    up-projection has 256 outputs. A wrong guess shows in the table of groups, and ``roles`` corrects it.
    """
    for each in module.modules():
        ask = getattr(each, "get_output_embeddings", None)
        head = ask() if callable(ask) else None
        if isinstance(head, nn.Module):
            return head
    vocabularies = {each.num_embeddings for each in module.modules() if isinstance(each, EMBEDDINGS)}
    linears = [each for each in module.modules() if isinstance(each, nn.Linear)]
    return linears[-1] if linears and linears[-1].out_features in vocabularies else None


@dataclass
class _Found:
    """A parameter, all the names it goes by, and its role so far."""

    parameter: nn.Parameter
    role: Role
    names: list[str] = field(default_factory=list)


def _parameters(module: nn.Module) -> list[_Found]:
    """Every parameter once, in module order, with the strongest role that its owners give it."""
    found: dict[int, _Found] = {}
    for name, parameter, role in _occurrences(module):
        each = found.setdefault(id(parameter), _Found(parameter, role))
        each.names.append(name)
        each.role = min(each.role, role, key=ROLES.index)
    return list(found.values())


def _occurrences(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """Every place where a parameter is registered: its full name there, and its role there."""
    head = find_head(module)
    for path, owner in module.named_modules():
        for leaf, parameter in owner.named_parameters(recurse=False):
            yield f"{path}.{leaf}".lstrip("."), parameter, _role(owner, leaf, parameter, owner is head)


def _role(owner: nn.Module, leaf: str, parameter: nn.Parameter, is_head: bool) -> Role:
    """The role of ``owner.leaf``; the rows of the table at the top, in order."""
    kind, axes = type(owner).__name__.lower(), parameter.ndim
    if isinstance(owner, EMBEDDINGS) or (axes >= 2 and ("embed" in kind or _is_embedding_name(leaf))):
        return "embedding"
    if is_head and axes == 2:
        return "head"
    if isinstance(owner, NORMS) or (axes < 2 and "norm" in kind):
        return "norm"
    if axes < 2:
        return "bias"
    if isinstance(owner, _ConvNd):
        return "conv"
    return "other" if axes > 2 else "matrix"


def _is_embedding_name(leaf: str) -> bool:
    """``pos_emb``, ``class_embedding``, ``embeddings`` … but not ``ensemble``."""
    return any(word.startswith("emb") for word in leaf.lower().split("_"))


def _correct(found: list[_Found], roles: Mapping[str, Role]) -> None:
    """Give each parameter the role of the first pattern that matches one of its names."""
    for pattern, role in reversed(list(roles.items())):
        matching = [each for each in found if any(fnmatchcase(name, pattern) for name in each.names)]
        if not matching:
            raise UserError(f"roles: no trainable parameter is called {pattern!r}{_nearest(pattern, found)}")
        for each in matching:
            each.role = role
    for each in found:
        if each.role == "matrix" and each.parameter.ndim != 2:
            raise UserError(f"roles: {each.names[0]} has shape {list(each.parameter.shape)}; a matrix has two axes")


def _nearest(pattern: str, found: list[_Found]) -> str:
    near = difflib.get_close_matches(pattern, [name for each in found for name in each.names], n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _group(role: Role, members: list[_Found]) -> ParameterGroup:
    return ParameterGroup(role, tuple(each.names[0] for each in members), tuple(each.parameter for each in members))
