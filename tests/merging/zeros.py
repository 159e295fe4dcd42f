"""A model that begins alike whatever the seed, as one that is loaded from a file does."""

from torch import nn


class Zeros(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(x.flatten(1))
