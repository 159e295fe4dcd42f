"""``disttrain doctor``: can training run here, what else could, and, under a launcher, how fast the ranks reach each other."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from disttrain.component import UserError
from disttrain.doctor.checks import Finding, findings
from disttrain.launch.rank_info import RankInfo, others
from disttrain.launch.shutdown import DONE, FAILED


def doctor(as_json: bool) -> int:
    """Look, and say what was found; returns 0 when training can run, else 1.

    Args:
        as_json: print one JSON object instead of lines.
    """
    info, store, launcher = _who(os.environ)
    if info.local_rank:  # the first rank of a host speaks for it
        found: list[Finding] = []
    else:
        found = [launcher]
        if not as_json:
            _say(launcher)
        for finding in findings():
            found.append(finding)
            if not as_json:
                _say(finding)
    links: list[Any] = []
    if info.world_size > 1 and launcher.ok:
        from disttrain.launch.link_speed import meet_and_measure

        links, failures = meet_and_measure()
        found += [Finding(f"interface {name}", False, why) for name, why in failures.items()]
    can_train = all(each.ok for each in found if each.needed)
    if info.rank == 0:
        _conclude(found, links, can_train, as_json)
    del store
    return DONE if can_train else FAILED


def _who(environment: Mapping[str, str]) -> tuple[RankInfo, Any, Finding]:
    """This process among all, the store in which they meet if it had to be made, and what to say about the launcher."""
    try:
        if any(name in others(environment) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")):
            from disttrain.launchers import mpi

            world = mpi.import_mpi()
            mpi.refuse_wrong_mpi(environment, world.size)
            info = mpi.rank_info(world)
            return info, mpi.introduce(world, info), _launcher(info)
        info = RankInfo.from_environment(environment)
    except UserError as error:
        return RankInfo(), None, Finding("launcher", False, str(error), needed=True)
    return info, None, _launcher(info)


def _launcher(info: RankInfo) -> Finding:
    if info.launcher == "none":
        speeds = "; for the speed between workers: torchrun --nproc-per-node 2 -m disttrain.cli doctor"
        return Finding("launcher", True, f"none, this process is alone{speeds}", needed=True)
    here = f"{info.local_world_size} of {info.world_size} ranks on this host"
    return Finding("launcher", True, f"{info.launcher}, {here}", needed=True)


def _say(finding: Finding) -> None:
    sign = "ok" if finding.ok else "NO" if finding.needed else "--"
    print(f"{sign}  {finding.name:<14} {finding.detail}", flush=True)
    if finding.mend:
        print(f"{'':<19}{finding.mend}", flush=True)


def _conclude(found: list[Finding], links: list[Any], can_train: bool, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                {"can_train": can_train, "findings": [asdict(each) for each in found], "links": [asdict(e) for e in links]}
            )
        )
        return
    for finding in found:
        if finding.name.startswith("interface "):
            _say(finding)
    if links:
        print("\ninterface   ranks     latency   bandwidth")
    for link in links:
        ranks, speed = f"{link.first}-{link.second}", f"{link.bytes_per_second * 8 / 1e6:,.0f} Mbit/s"
        print(f"{link.interface:<11} {ranks:<6} {link.latency_seconds * 1e6:>7.0f} us {speed:>14}")
    broken = ", ".join(each.name for each in found if each.needed and not each.ok)
    verdict = "training can run" if can_train else f"training cannot run: {broken}"
    print(f"\n{verdict}", file=sys.stdout if can_train else sys.stderr, flush=True)
