"""A memif port as the supervisor keeps it: what its worker is told of it, and when."""

from __future__ import annotations

import errno
import os
import selectors
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krononat import lines, memif
from krononat.lines import PAUSE, Line, Place
from krononat.memif import Peer, Wanted
from krononat.view import ticks
from shards.memif import CONNECTION
from shards.notes import LINK_WORDS


def serve(selector: selectors.BaseSelector) -> None:
    for key, _ in selector.select(1):
        key.data()


def test_a_worker_that_had_too_much_to_do_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "set_carrier", lambda *_: None)
    told: list[Any] = []

    def tell(message: dict[str, Any], _: Sequence[int]) -> None:
        told.append(message["connection"])

    peers: list[Peer] = []
    path, frames = str(tmp_path / "memif"), memif.new_region("frames", 1 << 16)
    link, selector = np.zeros(LINK_WORDS, np.int64), selectors.DefaultSelector()
    place = Place(0, "port0", path, Wanted(0, frames, 1 << 16), -1, [], [])
    with memif.Server(path) as server, selector:
        accepting = threading.Thread(target=lambda: peers.append(server.accept()))
        accepting.start()
        line = Line(0, place, link, selector, tell, print)
        line.watch(ticks())
        while not told:
            serve(selector)
        accepting.join()
        number = told[0]["number"]
        now = ticks()
        line.watch(now)
        assert len(told) == 1
        line.watch(now + PAUSE)
        assert [each["number"] for each in told] == [number, number]
        link[CONNECTION] = number  # now it has listened
        line.watch(now + 10 * PAUSE)
        assert len(told) == 2
        peers[0].close()
        while told[-1]:
            serve(selector)
        line.watch(ticks())
        assert told[2:] == [None]
        line._due = ticks() + 100 * PAUSE
        line.watch(ticks() + 2 * PAUSE)
        assert told[2:] == [None, None]
        link[CONNECTION] = 0
        line.watch(ticks() + 4 * PAUSE)
        assert told[2:] == [None, None]
        line.close()


def test_what_the_kernel_refuses_is_said_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tap that somebody deleted, and no descriptor left for a connection."""
    spoken: list[str] = []
    path, frames = str(tmp_path / "memif"), memif.new_region("frames", 1 << 16)
    place = Place(0, "port0", path, Wanted(0, frames, 1 << 16), os.open("/dev/null", os.O_RDWR), [], [])
    with memif.Server(path) as server, selectors.DefaultSelector() as selector:
        accepting = threading.Thread(target=server.accept)
        accepting.start()
        line = Line(0, place, np.zeros(LINK_WORDS, np.int64), selector, lambda *_: None, spoken.append)
        now = ticks()
        with monkeypatch.context() as patched:
            patched.setattr(memif, "call", _no_descriptor)
            line.watch(now)
        assert "Too many open files" in spoken.pop()
        line.watch(now + PAUSE)
        while not spoken:
            serve(selector)
        accepting.join()
        assert line.connection and "tap is no longer usable" in spoken[0] and "connected" in spoken[1]
        line.close()


def _no_descriptor(*_: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
