"""Models with habits that a simulator must cope with, or refuse clearly."""

import numpy as np
import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(x.flatten(1))


class Idle(Plain):
    """Has a layer that takes no part."""

    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(3, 3)


class Remembers(Plain):
    """Keeps an activation, as modules with auxiliary losses do; it cannot be copied then."""

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class Branches(Plain):
    """Looks at numbers, which vmap refuses."""

    def forward(self, x):
        out = super().forward(x)
        return out if float(out.detach().sum()) > 0 else 2 * out


class NumpyNoise(Plain):
    """Draws from a generator that all simulated workers would share."""

    def forward(self, x):
        return super().forward(x + torch.tensor(np.random.randn(), dtype=x.dtype))
