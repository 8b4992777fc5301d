"""The benches with real I/O: their frames, their pace, their search and their wires; never their speed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from bench import generator, paced, probes, search, traffic, veths
from krononat.lab import namespaces
from shards.memif import MASK_INTERRUPT, RING_HEADER_BYTES, ring_bytes
from shards.state import Array
from tests.netns import namespace

STATIONS = paced.Stations(*(bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3)))
POOL = 0xCB007100

# --- frames ---------------------------------------------------------------------------------------------------------------


def _fine(frames: Array) -> bool:
    return bool((traffic.ip_sum(frames) == 0xFFFF).all() and (traffic.transport_sum(frames) == 0xFFFF).all())


def test_generated_frames_are_right_and_every_flow_is_another() -> None:
    frames = generator.frames_of(generator.Flow(STATIONS.inside, STATIONS.appliance))
    assert frames.shape == (40_000, 60) and _fine(frames)
    assert len(np.unique(frames[:, 26:38], axis=0)) == 40_000


def test_a_probe_tells_its_time_and_its_checksum_stays_right() -> None:
    plain = generator.frames_of(generator.Flow(STATIONS.inside, STATIONS.appliance), 1, probes.PORT)
    probe = probes.stamped(plain[0].tobytes(), 123_456_789_012)
    assert _fine(np.frombuffer(probe, np.uint8).reshape(1, -1))
    assert probes.stamp_of(probe[42:]) == 123_456_789_012
    with pytest.raises(RuntimeError, match="damaged"):
        probes.stamp_of(probe[42:50] + b"\0" * 10)


# --- search ---------------------------------------------------------------------------------------------------------------


def _bearing(limit: int) -> Callable[[int], search.Trial]:
    return lambda rate: search.Trial(rate, min(rate, limit))


def test_the_highest_rate_that_is_borne_is_found() -> None:
    trial = search.highest(_bearing(437_000), 100_000, 1_600_000, 9)
    assert 0.99 * 437_000 < trial.delivered <= 437_000 and trial.loss <= search.LOSS_BORNE


def test_where_nothing_is_borne_the_loss_at_the_lowest_rate_is_told() -> None:
    trial = search.highest(_bearing(50_000), 100_000, 1_600_000, 5)
    assert (trial.offered, trial.loss) == (100_000, 0.5)


def test_one_bad_try_decides_nothing() -> None:
    answers = iter([0.95, 1.0, 0.92, 0.98, 1.0])
    trial = search.highest(lambda rate: search.Trial(rate, rate * next(answers)), 100, 400, 2)
    assert trial.loss == 0 and trial.offered > 200


# --- the paced generator --------------------------------------------------------------------------------------------------


class Client:
    """A memif client over plain arrays: buffers are given with `give`, taken and sent back with `turn`."""

    def __init__(self, log2_entries: int = 5, buffers: int = 64) -> None:
        size = ring_bytes(log2_entries)
        self.halves = np.zeros(size, np.uint16)  # both rings: the one to the server first
        self.frames = np.zeros((buffers, 256), np.uint8)
        self.longs, self.mask, self.out = self.halves.view(np.int64), (1 << log2_entries) - 1, size
        self.given = self.taken = self.sent = 0
        for at in (0, size):
            self.halves[at // 2 + 2] = MASK_INTERRUPT
        words = self.frames.reshape(-1).view(np.int64)
        self.link = paced.Link(self.halves, self.longs, words, size, 0, self.mask, -1, np.ones(1, np.int64))

    def _entry(self, ring: int, cursor: int) -> int:
        return ring // 8 + RING_HEADER_BYTES // 8 + 2 * (cursor & self.mask)

    def give(self, count: int) -> None:
        """Have so many more buffers wait."""
        for _ in range(count):
            entry = self._entry(self.out, self.given)
            self.longs[entry : entry + 2] = (256 << 32) | (1 << 16), self.given % len(self.frames) * 256
            self.given += 1
        self.halves[self.out // 2 + 3] = self.given & 0xFFFF

    def turn(self, translate: Callable[[Array], None]) -> int:
        """Send back what was received, translated; how many."""
        count = (int(self.halves[self.out // 2 + 32]) - self.taken) & 0xFFFF
        for _ in range(count):
            entry, out = self._entry(self.out, self.taken), self._entry(0, self.sent)
            at = int(self.longs[entry + 1])
            translate(self.frames[at // 256, :60])
            self.longs[out : out + 2] = self.longs[entry], at
            self.taken, self.sent = self.taken + 1, self.sent + 1
        self.halves[3] = self.sent & 0xFFFF
        return count

    def serve(self, translate: Callable[[Array], None], stop: threading.Event) -> None:
        """Turn, and give, until told to stop."""
        while not stop.is_set():
            self.turn(translate)
            self.give(32 - (self.given - self.taken))


def _nat(frame: Array) -> None:
    """What a NAT does to a frame, on a stick: subscriber n is POOL + n // 4, port 5000 + n % 4."""
    row = frame.reshape(1, -1)
    if frame[5] != STATIONS.appliance[5]:
        raise AssertionError("not addressed to us")
    outbound = frame[26] == 100
    frame[0:6] = np.frombuffer(STATIONS.outside if outbound else STATIONS.inside, np.uint8)
    frame[6:12] = np.frombuffer(STATIONS.appliance, np.uint8)
    frame[22] -= 1
    if outbound:
        number = np.array([int.from_bytes(frame[26:30].tobytes(), "big") - paced.INTERNAL])
        traffic.put(row, 26, POOL + number // 4, 4)
        traffic.put(row, 34, 5000 + number % 4, 2)
    else:
        block, port = (int.from_bytes(frame[at:end].tobytes(), "big") for at, end in ((30, 34), (36, 38)))
        traffic.put(row, 30, np.array([paced.INTERNAL + 4 * (block - POOL) + port - 5000]), 4)
        traffic.put(row, 36, np.array([paced.INTERNAL_PORT]), 2)
    traffic.write_checksums(row)


@pytest.fixture
def serving() -> Iterator[Callable[[Callable[[Array], None]], Client]]:
    """Starts clients that translate, and stops them."""
    stop, threads = threading.Event(), []

    def start(translate: Callable[[Array], None]) -> Client:
        client = Client()
        threads.append(threading.Thread(target=client.serve, args=(translate, stop), daemon=True))
        threads[-1].start()
        return client

    yield start
    stop.set()
    for thread in threads:
        thread.join(5)


def test_both_directions_are_verified(serving: Callable[[Callable[[Array], None]], Client]) -> None:
    client, rows = serving(_nat), paced.new_rows(STATIONS, 40)
    assert _fine(rows.sent[0::2, :60])
    paced.learn(client.link, rows, 400)
    paced.answer(rows, STATIONS)
    assert _fine(rows.sent[:, :60]) and _fine(rows.expected[:, :60])
    outcome = paced.measure(client.link, rows, 400, 0.3)
    assert outcome.wrong == 0 and 40 < outcome.returned <= outcome.offered  # a busy machine may miss some


def test_a_wrong_byte_and_a_lost_frame_are_seen(serving: Callable[[Callable[[Array], None]], Client]) -> None:
    served = 0

    def now_and_then_wrong(frame: Array) -> None:
        nonlocal served
        _nat(frame)
        served += 1
        frame[55] ^= served % 10 == 0 and served > 400

    client, rows = serving(now_and_then_wrong), paced.new_rows(STATIONS, 20)
    paced.learn(client.link, rows, 400)
    paced.answer(rows, STATIONS)
    served = 401
    outcome = paced.measure(client.link, rows, 400, 0.3)
    assert outcome.wrong > 0 and outcome.loss >= outcome.wrong / outcome.offered - 1e-9


def test_what_comes_back_untranslated_is_no_nat(serving: Callable[[Callable[[Array], None]], Client]) -> None:
    client, rows = serving(lambda frame: None), paced.new_rows(STATIONS, 20)
    paced.learn(client.link, rows, 400)
    with pytest.raises(RuntimeError, match="20 of 20"):
        paced.answer(rows, STATIONS)


def test_a_frame_that_is_due_while_no_buffer_waits_is_missed() -> None:
    client, rows = Client(), paced.new_rows(STATIONS, 20)
    client.give(10)
    outcome = paced.measure(client.link, rows, 100_000, 0.05)
    assert client.turn(lambda frame: None) == 10
    assert outcome.offered > 10 and outcome.returned == 0 and outcome.loss == 1


# --- wires ----------------------------------------------------------------------------------------------------------------


@pytest.mark.lab
def test_wires_are_gone_after_a_failure() -> None:
    with namespace("wirt-root"), pytest.raises(ZeroDivisionError), veths.Place("test") as place:
        assert {place.client, place.device, place.server} <= namespaces.existing()
        raise ZeroDivisionError
    assert not [name for name in namespaces.existing() if name.startswith("wir-test")]
