"""What is said of a failure: whose it is, in one line."""

import pytest

from disttrain.component import UserError
from disttrain.launch.shutdown import StopRequest, describe


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (UserError("optimizer.lr: too large"), "mistake", "optimizer.lr: too large"),
        (RuntimeError("[../gloo/transport] Connection closed by peer [127.0.0.1]:1"), "peer", "lost the connection"),
        (RuntimeError("Timed out waiting 10000ms for recv operation to complete"), "peer", "Timed out"),
        (
            RuntimeError(
                2 * "Got the following error when running the callback: RuntimeError: " + "[/gloo/b.cc:78] Timed out waiting 5ms"
            ),
            "peer",
            "worker (Timed out waiting 5ms)",
        ),
        (
            RuntimeError("Expected to have finished reduction ... find_unused_parameters=True"),
            "error",
            "strategy.find_unused_parameters",
        ),
        (KeyError("x"), "error", "KeyError: 'x'"),
        (ValueError(""), "error", "ValueError"),
        (ValueError("first\nsecond"), "error", "ValueError: first"),
    ],
)
def test_every_failure_is_one_line_of_its_kind(error, kind, words):
    told, reason = describe(error)
    assert told == kind
    assert words in reason
    assert "\n" not in reason


def test_a_second_interrupt_does_not_wait():
    request = StopRequest()
    assert not request
    request._handle(15, None)
    assert request
    request.signal = "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        request._handle(2, None)
