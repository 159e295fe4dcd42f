"""A problem whose clients do what a file tells them to, once: ``die3``, ``hang3`` or ``raise3`` for client 3."""

import os
import time
from pathlib import Path

from tests.federated.quadratics import Quadratics


class Faulty(Quadratics):
    def __init__(self, folder, *shape):
        super().__init__(*shape)
        self.folder = Path(folder)

    def gradients(self, y, clients, draws):
        for client in clients.tolist():
            for fault, happen in (("die", lambda: os._exit(3)), ("hang", lambda: time.sleep(600)), ("raise", boom)):
                order = self.folder / f"{fault}{client}"
                if order.exists():
                    order.unlink()
                    happen()
        return super().gradients(y, clients, draws)


def boom():
    raise ZeroDivisionError("no such luck")
