"""A small language model with one of everything, and a few deterministic steps of training."""

from copy import deepcopy

import torch
from torch import nn

VOCABULARY, WIDTH = 13, 6

ROLES_OF_TINY = {
    "embedding.weight": "embedding",  # the head's weight too
    "position_emb": "embedding",
    "norm.weight": "norm",
    "norm.bias": "norm",
    "mixer.weight": "conv",
    "mixer.bias": "bias",
    "up.weight": "matrix",
    "up.bias": "bias",
    "gate": "bias",
    "down.weight": "matrix",
    "down.bias": "bias",
    "head.bias": "bias",
}


class Tiny(nn.Module):
    """Tokens ``[batch, 4]`` to logits ``[batch, 4, VOCABULARY]``; the head's weight is the embedding's."""

    def __init__(self):
        super().__init__()
        self.position_emb = nn.Parameter(torch.randn(4, WIDTH))
        self.gate = nn.Parameter(torch.ones(()))
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.mixer = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.up = nn.Linear(WIDTH, VOCABULARY)  # as many outputs as there are tokens, and yet no head
        self.down = nn.Linear(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position_emb
        x = self.mixer(self.norm(x).mT).mT
        return self.head(x + self.gate * self.down(nn.functional.gelu(self.up(x))))


def tiny(seed=0):
    torch.manual_seed(seed)
    return Tiny()


def loss_of(module, step):
    """Next-token loss on random tokens, others at every step."""
    tokens = torch.randint(VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def train(module, *optimizers, steps=range(5)):
    """Take ``steps`` with all of ``optimizers``, one after the other."""
    for step in steps:
        module.zero_grad()
        loss_of(module, step).backward()
        for optimizer in optimizers:
            optimizer.step()
    return module


def same_parameters(one, other):
    """Whether two modules of one architecture hold the same bits."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def twins(seed=0):
    """Two modules with equal, separate parameters."""
    module = tiny(seed)
    return module, deepcopy(module)


def split(module, *roles):
    """The parameters of Tiny with one of ``roles``, and the others."""
    named = dict(module.named_parameters())
    inside = [parameter for name, parameter in named.items() if ROLES_OF_TINY[name] in roles]
    return inside, [parameter for name, parameter in named.items() if ROLES_OF_TINY[name] not in roles]
