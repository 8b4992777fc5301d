"""Taps: how the kernel has a share of a port that is no device (linux `Documentation/networking/tuntap`).

A tap lives as long as somebody has its descriptor, so nothing has to be taken back.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct

from pyroute2 import IPRoute

from krononat.client import Trouble

# linux/if_tun.h
_TUNSETIFF, _TUNSETCARRIER = 0x400454CA, 0x400454E2
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


def open_tap(name: str, core: str) -> int:
    """Descriptor of a tap of that name, made where there is none, without a carrier. Reading does not wait.

    Its MAC address follows from its name and the core's, so that a restart does not leave the neighbours with a stale one.
    """
    with IPRoute() as ip:
        there = bool(ip.link_lookup(ifname=name))
        try:
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        except OSError as error:
            remedy = f"{name} must not exist, or be a tap that nobody uses" if there else "root and the module `tun` are needed"
            raise Trouble(f"cannot make a tap {name}", str(error.strerror), remedy) from error
        if not there:
            ip.link("set", index=ip.link_lookup(ifname=name)[0], address=_mac(f"{core} {name}"))
    set_carrier(descriptor, False)
    return descriptor


def _mac(text: str) -> str:
    """A locally administered address (RFC 9542) that follows from the text."""
    return bytes((2, *hashlib.sha256(text.encode()).digest()[:5])).hex(":")


def set_carrier(descriptor: int, there: bool) -> None:
    """Let the kernel know whether anybody is at the other end; without one it takes its neighbours for gone."""
    fcntl.ioctl(descriptor, _TUNSETCARRIER, struct.pack("i", there))
