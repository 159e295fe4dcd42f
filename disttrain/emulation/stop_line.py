"""How a signal reaches the process inside the namespaces: by name, a line each, through its standard input.

A signal itself would be lost: PID 1 gets none as long as it has no handler for it.
"""

from __future__ import annotations

import threading
from typing import TextIO

from disttrain.launch.shutdown import FAILED, leave


class StopLine:
    """Listens, in a thread of its own.

    Args:
        source: the line. At its end the process outside is gone, and this one leaves at once, with everything inside.

    Attributes:
        signal: the name of the first signal that came, or None.
    """

    def __init__(self, source: TextIO) -> None:
        self.signal: str | None = None
        threading.Thread(target=self._listen, args=(source,), daemon=True).start()

    def _listen(self, source: TextIO) -> None:
        for line in source:
            self.signal = self.signal or line.strip()
        leave(FAILED)
