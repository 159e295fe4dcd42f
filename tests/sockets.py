"""What the kernel says that a process has sent."""

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path


def bytes_sent():
    """By this process through its TCP connections, as the kernel counts them, without what a busy machine sent twice.

    Not the loopback interface's counter, to which every other process on the machine adds.
    """
    total = 0
    for place in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this very listing
            if os.readlink(place).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(place.name))) as connection:
                    total += bytes_sent_by(connection)
    return total


def bytes_sent_by(connection):
    if connection.proto != socket.IPPROTO_TCP:
        return 0
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 216)
    sent, again = struct.unpack_from("QQ", info, 200)  # tcpi_bytes_sent, tcpi_bytes_retrans
    return sent - again
