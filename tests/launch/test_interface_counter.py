"""The interface's own counters, as this process's network namespace has them."""

import socket
import sys

import pytest

from disttrain.launch.interface_counter import InterfaceCounter

PAYLOAD = b"x" * 50_000


def send_to_self():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        sender.sendall(PAYLOAD)
        with receiver:
            assert len(receiver.recv(len(PAYLOAD), socket.MSG_WAITALL)) == len(PAYLOAD)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/self/net/dev")
def test_it_counts_from_its_beginning_and_goes_on_from_what_it_was():
    counter = InterfaceCounter("lo")
    send_to_self()
    counts = counter.counts()
    assert counts["interface_sent_bytes"] >= len(PAYLOAD)
    assert counts["interface_received_bytes"] >= len(PAYLOAD)
    later = InterfaceCounter("lo")
    later.restore({"interface_sent_bytes": 10**15, "interface_received_bytes": 10**16})
    assert later.counts()["interface_sent_bytes"] - 10**15 < 10**12
    assert later.counts()["interface_received_bytes"] >= 10**16


@pytest.mark.parametrize("name", [None, "wan7"])
def test_nothing_is_made_up_of_an_interface_that_is_not_there(name):
    assert InterfaceCounter(name).counts() == {}
