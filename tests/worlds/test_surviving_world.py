"""Whoever is late or lost: the sum of all vectors is kept to the last exchange, and rows repeat what processes did, bitwise."""

import random
import time

import pytest
import torch
from torch import nn

from disttrain.launch.shutdown import DONE
from disttrain.parameters import FlatParameters
from disttrain.topology import BaseGraphConfig, HypercubeConfig, RandomMatchingConfig, RingConfig
from disttrain.worlds.pair import END
from tests.worlds.mixing import FLOOR_SECONDS, begun, mix, read_journal
from tests.worlds.scripted import ScriptedWorld

FROZEN_SECONDS = 5.0


def journals_in(folder, size):
    return [list(read_journal(folder / f"{rank}.journal")) for rank in range(size)]


def audit(journals, results):
    """Check the sum; how many exchanges were half done, and how many workers have counted as such.

    An exchange that only one end has added moves the sum over all, the dead with what they had last, by just what it has added.
    """
    added = [{(each.peer, each.step): each.flow for entry in journal for each in entry.added} for journal in journals]
    change = sum(journal[-1].x - journal[0].x - sum(entry.update for entry in journal) for journal in journals)
    half_done = [
        (rank, peer, flow)
        for rank in range(len(journals))
        for (peer, step), flow in added[rank].items()
        if (rank, step) not in added[peer]
    ]
    living = set(results)
    assert not [each for each in half_done if {each[0], each[1]} <= living], "what both ends live to add, both add"
    expected = sum((flow for _, _, flow in half_done), torch.zeros_like(change))
    assert torch.allclose(change, expected, atol=1e-10)
    counted = sum(result["lost_exchanges"] for result in results.values())
    seen = [each for each in half_done if living & set(each[:2])]
    assert len(seen) <= counted
    mean = sum(journals[rank][-1].x for rank in living) / len(living)
    for result in results.values():
        assert torch.allclose(result["merged"], mean, atol=1e-12)
        assert result["living"] == sorted(living)
    return len(seen), counted


def check_rows(journals, topology):
    """Replay the journals on rows: the same strategy, updates and arrivals."""
    size = len(journals)
    script = {}
    for rank, journal in enumerate(journals):
        for entry in journal:
            for each in entry.added:
                script.setdefault((rank, each.call), []).append(each)
    by_step = [{entry.step: entry for entry in journal} for journal in journals]
    x = torch.cat([journal[0].x for journal in journals])
    layout = FlatParameters(nn.Linear(10, 10).double()).layout
    strategy = begun(x, layout, ScriptedWorld(size, script), topology)
    for step in range(1, max(entry.step for journal in journals for entry in journal if entry.step != END) + 1):
        strategy.before_step()
        for rank in range(size):
            if step in by_step[rank]:
                x[rank] += by_step[rank][step].update[0]
                assert torch.equal(x[rank : rank + 1], by_step[rank][step].x), (rank, step)
        strategy.after_step()
    strategy.finish()
    for rank in range(size):
        if END in by_step[rank]:
            assert torch.equal(x[rank : rank + 1], by_step[rank][END].x), rank


@pytest.mark.parametrize(("seed", "topology"), [(0, BaseGraphConfig()), (1, RingConfig()), (2, HypercubeConfig())])
def test_the_sum_is_kept_when_workers_are_killed(survivors, tmp_path, seed, topology):
    draw = random.Random(seed)
    run = survivors(8, mix, tmp_path, topology, 150, 0.01)
    victims = draw.sample(range(8), 4)
    run.wait_for_step(draw.randrange(1, 40))
    run.kill(victims[0])
    run.wait_for_step(draw.randrange(41, 120))
    for victim in victims[1:]:
        run.kill(victim)
    assert run.end().code == DONE, run.accounts()
    results, journals = run.results(), journals_in(tmp_path, 8)
    assert set(results) == set(range(8)) - set(victims)
    audit(journals, results)
    check_rows(journals, topology)


def test_a_frozen_worker_delays_nobody_past_the_deadline_and_lands_later(survivors, tmp_path):
    run = survivors(4, mix, tmp_path, RandomMatchingConfig(), 250, 0.02)
    run.wait_for_step(20)
    run.freeze(2)
    time.sleep(FROZEN_SECONDS)
    run.thaw(2)
    assert run.end().code == DONE, run.accounts()
    results, journals = run.results(), journals_in(tmp_path, 4)
    assert audit(journals, results) == (0, 0)
    check_rows(journals, RandomMatchingConfig())
    assert results[2]["skipped"] > 20
    late = [each for journal in journals for entry in journal for each in entry.added if each.step != each.call]
    assert late, "an exchange that was under way landed after the thaw"
    for rank in (0, 1, 3):
        slowest = max(results[rank]["seconds"].values())
        assert slowest < FROZEN_SECONDS / 2, f"worker {rank} has waited {slowest:.2f} s; the deadline is {FLOOR_SECONDS} s"
