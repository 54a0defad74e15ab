"""A cable with a delay between two network namespaces: two TUN devices and a relay that lets packets wait.

What `tc netem` would do, for kernels that lack it. Runs where /dev/net/tun may be opened.
"""

import fcntl
import os
import queue
import struct
import threading
import time

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 65000  # few packets, so that the relay has little to do


def open_tun(name):
    """Make a TUN device; it lives as long as the file descriptor that is returned, in whatever namespace it is put."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


class Cable:
    """Carries packets both ways, each after `delay_s` seconds; several may be under way at once."""

    def __init__(self, ends):
        self.delay_s = 0.0
        for source, target in (ends, ends[::-1]):
            under_way = queue.SimpleQueue()
            for work in (self._read, self._write):
                threading.Thread(target=work, args=(source, target, under_way), daemon=True).start()

    def _read(self, source, target, under_way):
        try:
            while True:
                packet = os.read(source, MTU + 100)
                under_way.put((time.monotonic() + self.delay_s, packet))
        except OSError:  # the device is gone
            return

    def _write(self, source, target, under_way):
        while True:
            due, packet = under_way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                os.write(target, packet)
            except OSError:
                return
