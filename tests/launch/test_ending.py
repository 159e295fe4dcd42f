"""Whose fault it was, from exit codes and what failing workers have left."""

import json

import pytest

from disttrain.launch.ending import Ending, ending_of, start_until_final
from disttrain.launch.shutdown import DONE, FAILED, STOPPED, USERS_MISTAKE


def leave_report(folder, rank, kind, reason):
    (folder / f"failure.rank{rank}.json").write_text(json.dumps({"rank": rank, "kind": kind, "reason": reason}))


@pytest.mark.parametrize("reason", ["(Timed out waiting 5000ms)", "(The client socket has timed out after 10000ms)"])
def test_a_worker_that_was_waited_for_in_vain_is_named_not_the_one_that_waited(tmp_path, reason):
    leave_report(tmp_path, 0, "peer", f"lost the connection to another worker {reason}")
    ending = ending_of({0: FAILED, 1: -9}, tmp_path)
    assert ending == Ending(FAILED, "rank 1 failed: it did not answer within launch.timeout", final=False)


def test_the_worker_that_raised_is_named_not_those_that_lost_it(tmp_path):
    leave_report(tmp_path, 0, "peer", "lost the connection")
    leave_report(tmp_path, 2, "error", "ArithmeticError: no")
    assert ending_of({0: FAILED, 1: -9, 2: FAILED}, tmp_path).reason in (
        "rank 2 failed: ArithmeticError: no", "rank 1 failed: it was killed by SIGKILL",
    )  # fmt: skip
    assert ending_of({2: FAILED, 0: FAILED, 1: -9}, tmp_path).reason == "rank 2 failed: ArithmeticError: no"


def test_a_mistake_and_a_wanted_stop_are_final(tmp_path):
    assert ending_of({0: STOPPED, 1: STOPPED}, tmp_path) == Ending(STOPPED)
    leave_report(tmp_path, 1, "mistake", "too small")
    assert ending_of({0: -9, 1: USERS_MISTAKE}, tmp_path) == Ending(USERS_MISTAKE, "too small")


def test_a_wanted_restart_does_not_use_up_the_restarts_after_failures(tmp_path, capsys):
    endings = [
        Ending(FAILED, "wanted", final=False, wanted=True), Ending(FAILED, "lost", final=False),
        Ending(FAILED, "wanted", final=False, wanted=True), Ending(DONE),
    ]  # fmt: skip
    given = []

    def start(arguments):
        given.append(arguments)
        return endings[len(given) - 1]

    assert start_until_final(start, "c.yaml", ["a.b=1", "training.resume=never"], tmp_path, 1) == DONE
    assert given == [["c.yaml", "a.b=1", "training.resume=never"]] + [["c.yaml", "a.b=1", "training.resume=auto"]] * 3
    assert "lost; starting all workers again, 1 restart left" in capsys.readouterr().err


def test_restarts_end(tmp_path, capsys):
    starts = []

    def start(arguments):
        starts.append(arguments)
        return Ending(FAILED, f"lost {len(starts)}", final=False)

    assert start_until_final(start, "c.yaml", [], tmp_path, 2) == FAILED
    assert len(starts) == 3
    assert capsys.readouterr().err.splitlines()[2:] == ["disttrain: lost 3", f"disttrain: logs are in {tmp_path / 'logs'}"]
