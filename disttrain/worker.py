"""One worker of a training run: what torchrun and ``disttrain train`` start, once for each rank."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from disttrain.component import UserError
from disttrain.config import load_config
from disttrain.launch.rank_info import RankInfo
from disttrain.launch.shutdown import DONE, STOPPED, USERS_MISTAKE, StopRequest, leave, run_worker, stop_with_parent


def main(arguments: Sequence[str] = sys.argv[1:]) -> NoReturn:
    """Train as the config says; the arguments are CONFIG and overrides. Leaves the process by an exit code."""
    if not arguments:
        print("disttrain: a config file is needed: launchers/train.py CONFIG [a.b=c ...]", file=sys.stderr)
        leave(USERS_MISTAKE)
    stop_request = StopRequest()
    stop_request.listen()
    stop_with_parent()
    try:
        info = RankInfo.from_environment()
    except UserError as error:
        print(f"disttrain: {error}", file=sys.stderr)
        leave(USERS_MISTAKE)
    life = Life(arguments, info, stop_request)
    run_worker(life.run, info, lambda: life.folder)


class Life:
    """What a worker does, from the config to the summary.

    Args:
        arguments: CONFIG and overrides.
        info: this worker among all.
        stop_request: becomes true when it is asked to stop.

    Attributes:
        folder: of the run, as soon as it is known.
    """

    def __init__(self, arguments: Sequence[str], info: RankInfo, stop_request: StopRequest) -> None:
        self._arguments, self._info, self._stop_request = arguments, info, stop_request
        self.folder: Path | None = None

    def run(self) -> int:
        """Train; returns the exit code.

        Raises:
            UserError: for what is wrong with config, data, machine or run folder.
        """
        from disttrain.run import start_session  # torch's libraries take seconds to import: a mistake is reported before
        from disttrain.training.loop import fit

        loaded = load_config(self._arguments[0], self._arguments[1:])
        if loaded.config.run.directory is not None:
            self.folder = Path(loaded.config.run.directory)
        if self._info.rank == 0:
            for notice in loaded.notices:
                print(f"note: {notice}", flush=True)
        loaded.config.check_data()
        session = start_session(loaded, self._info, self._stop_request)
        self.folder = session.folder.path
        fit(session)
        return STOPPED if session.stopping.interrupted and not session.completed else DONE


if __name__ == "__main__":
    main()
