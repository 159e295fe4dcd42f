"""Ray's actors, from their placement to their end: who is which rank, how each ended, and what that means for all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from disttrain.component import UserError
from disttrain.launch.ending import Ending, ending_of
from disttrain.launch.rank_info import RankInfo
from disttrain.launch.shutdown import DONE, FAILED, STOPPED, StopRequest
from disttrain.launchers.ray_worker import Outcome, Place, RayWorker

GRACE_SECONDS = 5.0
"""For the other workers to notice, and to say what they saw, when one has failed."""
STOP_SECONDS = 30.0
"""For all to save and stop."""
POLL_SECONDS = 0.5


class _Stopped(Exception):
    """Somebody asked this process to stop, before the workers could hear of it."""


class Crew:
    """Starts the workers, and looks after them.

    Args:
        size: how many.
        cpus: that Ray keeps for each.
        gpu: whether each has one.
        spread: one worker per node, rather than as few nodes as can be.
        wait: seconds for Ray to find room, and for actors to answer.
        folder: the run folder.
        stop: becomes true when this process is asked to stop.
    """

    def __init__(self, size: int, cpus: int, gpu: bool, spread: bool, wait: float, folder: Path, stop: StopRequest) -> None:
        self._size, self._cpus, self._gpu, self._spread = size, cpus, gpu, spread
        self._wait, self._folder, self._stop = wait, folder, stop

    def start(self, arguments: list[str]) -> Ending:
        """Start all workers and see them through.

        Args:
            arguments: CONFIG and overrides.

        Raises:
            UserError: if Ray has no room.
        """
        import ray
        from ray.util import remove_placement_group

        group, actors = self._ask_for_places(), []
        try:
            self._wait_for([group.ready()], self._no_room)
            actors = self._hire(group)
            calls = self._set_to_work(actors, arguments)
            return self._watch(actors, calls)
        except TimeoutError as error:
            return Ending(FAILED, str(error), final=False)
        except _Stopped:
            return Ending(FAILED, f"stopped by {self._stop.signal} before there was anything to save")
        except ray.exceptions.RayActorError as error:
            return Ending(FAILED, f"a Ray actor died before training began: {reason_of_death(error)}", final=False)
        finally:
            for actor in actors:
                ray.kill(actor)
            remove_placement_group(group)

    def _ask_for_places(self) -> Any:
        from ray.util import placement_group

        return placement_group([self._bundle()] * self._size, strategy="STRICT_SPREAD" if self._spread else "PACK")

    def _bundle(self) -> dict[str, int]:
        """What Ray keeps for a worker."""
        return {"CPU": self._cpus} | ({"GPU": 1} if self._gpu else {})

    def _wait_for(self, calls: list[Any], late: Callable[[], Exception]) -> list[Any]:
        """The results of calls; if they are ``late``, an error is raised, if somebody wants to stop, :class:`_Stopped`."""
        import ray

        waiting, deadline = list(calls), time.monotonic() + self._wait
        while waiting:
            if self._stop:
                raise _Stopped
            if time.monotonic() > deadline:
                raise late()
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)
        return list(ray.get(calls, timeout=POLL_SECONDS + self._wait))

    def _no_answer(self) -> Exception:
        return TimeoutError(f"Ray's actors did not answer within {self._wait:g} s")

    def _no_room(self) -> Exception:
        import ray

        there = [f"{amount:g} {name}" for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU")]
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        asked = " and ".join(f"{amount} {name}" for name, amount in self._bundle().items())
        where = "each on a node of its own" if self._spread else "on any nodes"
        return UserError(
            f"Ray found no room within {self._wait:g} s for {self._size} workers of {asked}, {where}: nodes: {len(nodes)}, "
            f"with {' and '.join(there)} in all; ask for less, or for longer by --wait"
        )

    def _hire(self, group: Any) -> list[Any]:
        """An actor in every place."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        remote = ray.remote(RayWorker)
        return [
            remote.options(
                num_cpus=self._cpus, num_gpus=int(self._gpu), max_concurrency=2, max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            ).remote()
            for index in range(self._size)
        ]  # fmt: skip

    def _set_to_work(self, actors: list[Any], arguments: list[str]) -> list[Any]:
        """Give everybody a rank, and let them train; returns the calls, by rank. Actors are sorted by rank."""
        places: list[Place] = self._wait_for([actor.place.remote() for actor in actors], self._no_answer)
        order = in_rank_order(places)
        actors[:], places = [actors[index] for index in order], [places[index] for index in order]
        (port,) = self._wait_for([actors[0].open_store.remote()], self._no_answer)
        logs, work = str(self._folder / "logs"), os.getcwd()
        return [
            actor.train.remote(arguments, info, variables(info, places, port), logs, work)
            for actor, info in zip(actors, ranks(places), strict=True)
        ]

    def _watch(self, actors: list[Any], calls: list[Any]) -> Ending:
        """Until all have ended, one has failed, or this process is asked to stop and all have saved."""
        import ray

        rank_of, outcomes = {call: rank for rank, call in enumerate(calls)}, dict[int, Outcome]()
        waiting, deadline, told = list(calls), float("inf"), False
        while waiting and time.monotonic() < deadline:
            if self._stop and not told:
                told, deadline = True, time.monotonic() + STOP_SECONDS
                for actor in actors:
                    actor.stop.remote(str(self._stop.signal))
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=POLL_SECONDS)
            for call in ready:
                outcome = outcomes[rank_of[call]] = _outcome(call)
                if outcome.code not in (DONE, STOPPED):
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return self._ending(outcomes)

    def _ending(self, outcomes: dict[int, Outcome]) -> Ending:
        """What it means for the run; reports that workers on other machines have left there are put into the run folder here."""
        failures = {rank: outcome for rank, outcome in outcomes.items() if outcome.code not in (DONE, STOPPED)}
        for rank, outcome in failures.items():
            path = self._folder / f"failure.rank{rank}.json"
            if not path.exists():
                path.write_text(json.dumps({"rank": rank, **asdict(outcome)}, indent=1))
        if failures:
            ending = ending_of({rank: outcome.code for rank, outcome in failures.items()}, self._folder)
            return Ending(ending.code, ending.reason, final=True) if self._stop else ending
        name = self._stop.signal
        if len(outcomes) < self._size:
            return Ending(FAILED, f"stopped by {name} before the workers could save")
        if all(outcome.code == DONE for outcome in outcomes.values()):
            return Ending(DONE)
        return Ending(STOPPED, f"stopped by {name} and saved" if name else "")


def in_rank_order(places: list[Place]) -> list[int]:
    """The actors' positions by rank: those of one node together, nodes in the order in which they appear."""
    first = {place.node: index for index, place in reversed(list(enumerate(places)))}
    return sorted(range(len(places)), key=lambda index: (first[places[index].node], index))


def ranks(places: list[Place]) -> list[RankInfo]:
    """Who is who, for actors in rank order."""
    nodes = [place.node for place in places]
    return [
        RankInfo(rank, len(nodes), nodes[:rank].count(node), nodes.count(node), launcher="ray") for rank, node in enumerate(nodes)
    ]


def variables(info: RankInfo, places: list[Place], port: int) -> dict[str, str]:
    """What torch reads from the environment: the rank, where to meet, and, of GPUs, all that workers of this node have.

    Ray shows each actor its own GPU only; nccl wants to see those of its neighbours, and ours are chosen by local rank.
    """
    here = [place for place in places if place.node == places[info.rank].node]
    gpus = [gpu for place in here for gpu in place.gpus]
    return {
        "RANK": str(info.rank), "WORLD_SIZE": str(info.world_size), "LOCAL_RANK": str(info.local_rank),
        "LOCAL_WORLD_SIZE": str(info.local_world_size), "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1" if len(here) == len(places) else places[0].address,
    } | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})  # fmt: skip


def reason_of_death(error: Exception) -> str:
    """Ray's account of an actor's death in one line, without its guesses at causes."""
    text = " ".join(str(error).split())
    detail = text.partition("Worker exit detail: ")[2] or text
    return f"its Ray actor died: {detail.partition(' Some common causes')[0].rstrip('.')}"


def _outcome(call: Any) -> Outcome:
    """How the worker ended; an actor that died has a reason too."""
    import ray

    try:
        outcome: Outcome = ray.get(call, timeout=POLL_SECONDS)
    except ray.exceptions.RayActorError as error:
        return Outcome(FAILED, "died", reason_of_death(error))
    except ray.exceptions.RayError as error:
        return Outcome(FAILED, "error", " ".join(str(error).split())[-300:])
    return outcome
