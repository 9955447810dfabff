"""A line with delay and rate between two TUN devices: what netem does, for kernels without it.

Run as its own process: `python -m integration.bench.wire DEVICE_A DEVICE_B DELAY_MS MBIT`. It makes both devices, says
`ready`, and carries packets until its input ends. Each direction has a bottleneck with a drop-tail queue, then a delay.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_PACKET_BYTES = 65536
# Ethernet's frame and gap around each IP packet.
FRAME_BYTES = 38
QUEUE_S = 0.1


class Direction:
    """One direction of the line: decides when a packet leaves, or that it is dropped."""

    def __init__(self, delay_s: float, bits_per_s: float) -> None:
        """Take the one-way delay and the rate; rate 0 means unlimited."""
        self._delay_s = delay_s
        self._seconds_per_byte = 8 / bits_per_s if bits_per_s else 0.0
        self._free_at = 0.0

    def departure(self, length_bytes: int, now: float) -> float | None:
        """Return when a packet that comes in now goes out, None when the queue is full and it is lost."""
        start = max(now, self._free_at)
        if start - now > QUEUE_S:
            return None
        self._free_at = start + (length_bytes + FRAME_BYTES) * self._seconds_per_byte
        return self._free_at + self._delay_s


def _open(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
    return fd


def carry(ends: tuple[int, int], delay_s: float, bits_per_s: float) -> None:
    """Carry packets both ways until standard input ends."""
    queues: tuple[deque[tuple[float, bytes]], deque[tuple[float, bytes]]] = (deque(), deque())
    directions = (Direction(delay_s, bits_per_s), Direction(delay_s, bits_per_s))
    poll = select.epoll()
    for fd in (*ends, 0):
        poll.register(fd, select.EPOLLIN)
    while True:
        due = min((queue[0][0] for queue in queues if queue), default=None)
        # epoll waits in whole milliseconds, rounded up by Python; the rest of a millisecond is waited for busily.
        timeout = -1.0 if due is None else max(0.0, due - time.monotonic() - 0.001)
        for fd, _ in poll.poll(timeout):
            if fd == 0:
                return
            side = 0 if fd == ends[0] else 1
            while True:
                try:
                    packet = os.read(fd, _PACKET_BYTES)
                except BlockingIOError:
                    break
                leaves = directions[side].departure(len(packet), time.monotonic())
                if leaves is not None:
                    queues[side].append((leaves, packet))
        now = time.monotonic()
        for side in (0, 1):
            queue, out = queues[side], ends[1 - side]
            while queue and queue[0][0] <= now:
                try:
                    os.write(out, queue.popleft()[1])
                except OSError:
                    # A full device queue loses the packet, as a real line does.
                    continue


def main() -> int:
    """Run the line from the command line's arguments."""
    first, second, delay_ms, mbit = sys.argv[1:]
    # A line that waits for its turn on a processor delays more than it should.
    with contextlib.suppress(PermissionError):
        os.nice(-15)
    ends = (_open(first), _open(second))
    print("ready", flush=True)
    carry(ends, float(delay_ms) / 1000, float(mbit) * 1e6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
