"""One worker of the calibration: all-reduces and a clock, nothing else. Arguments: bytes, repeats.

Worker 0 prints ``wire_bytes`` of one all-reduce and the ``seconds`` of each repeat, as a JSON object. A repeat takes as long as
on its slowest worker: the one behind a slow uplink is done when its system has taken the data, long before they have arrived.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import torch

from disttrain.emulation.network import INTERFACE
from disttrain.launch.rank_info import RankInfo
from disttrain.launch.shutdown import DONE, leave, leave_world, stop_with_parent
from disttrain.launch.start import start_world

TIMEOUT_SECONDS = 120.0
WARM_UP_SHARE = 0.25
"""Of the payload, in a first all-reduce that is not counted: it empties the shapers' buckets and opens TCP's windows."""


def main(arguments: Sequence[str] = sys.argv[1:]) -> NoReturn:
    """Meet the others, reduce, and leave the process."""
    payload_bytes, repeats = map(int, arguments)
    stop_with_parent()
    torch.set_num_threads(1)
    info = RankInfo.from_environment()
    world = start_world(info, torch.device("cpu"), "gloo", INTERFACE, TIMEOUT_SECONDS)
    x, wire_bytes, seconds = torch.ones(payload_bytes // 4), 0, []
    world.start_mean_(x[: int(len(x) * WARM_UP_SHARE)]).wait()
    for _ in range(repeats):
        world.mean(torch.ones(1, 1))  # all begin together
        before, start = world.traffic.wire_bytes, time.perf_counter()
        world.start_mean_(x).wait()
        seconds.append(time.perf_counter() - start)
        wire_bytes = world.traffic.wire_bytes - before
    slowest = world.gather(torch.tensor([seconds], dtype=torch.float64))[0].amax(0)
    if info.rank == 0:
        print(json.dumps({"wire_bytes": wire_bytes, "seconds": slowest.tolist()}), flush=True)
    leave_world()
    leave(DONE)


if __name__ == "__main__":
    main()
