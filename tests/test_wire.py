"""Header fields and Internet checksums (RFC 1071, RFC 1624), against computing them anew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import native, rewrite, wire
from shards.state import ICMP, TCP, UDP
from tests.frames import ones_sum

words16, words32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


def memory(data: bytes) -> np.ndarray:
    """Frame memory that holds `data`."""
    return np.frombuffer(data, np.uint8).copy()


@given(words32, st.integers(0, 8))
def test_what_is_written_is_read(value: int, at: int) -> None:
    frames = memory(bytes(16))
    native.write32(frames, at, value)
    assert native.read32(frames, at) == value == int.from_bytes(frames[at : at + 4].tobytes(), "big")
    assert native.read16(frames, at) == value >> 16
    assert wire.read8(frames, at + 3) == value & 0xFF
    native.write16(frames, at, value & 0xFFFF)
    assert native.read16(frames, at) == value & 0xFFFF
    wire.write8(frames, at, value & 0xFF)
    assert wire.read8(frames, at) == value & 0xFF
    assert not frames[at + 4 :].any() and not frames[:at].any()


@given(st.binary(min_size=1, max_size=100))
def test_sum_is_the_plain_one(data: bytes) -> None:
    assert wire.fold(wire.sum16(memory(data), 0, len(data))) % 0xFFFF == ones_sum(data)


@given(st.binary(min_size=2, max_size=100).filter(any))
def test_data_with_its_checksum_sums_up_to_nothing(data: bytes) -> None:
    data = data + b"\0" * (len(data) & 1)
    check = wire.checksum(memory(data), 0, len(data))
    assert wire.checksum(memory(data + check.to_bytes(2, "big")), 0, len(data) + 2) == 0


@given(words32, words32, st.binary(min_size=20, max_size=40))
def test_adjusting_is_computing_anew(old: int, new: int, rest: bytes) -> None:
    """RFC 1624: HC' = ~(~HC + ~m + m'), and 0xFFFF and 0 are told apart as a fresh computation would."""
    rest = rest + b"\1" * (1 + (len(rest) + 1 & 1))  # never all zero, even length
    before, after = (value.to_bytes(4, "big") + rest for value in (old, new))
    check = wire.checksum(memory(before), 0, len(before))
    assert wire.adjusted(check, wire.difference(old, new)) == wire.checksum(memory(after), 0, len(after))


@given(words16, words32, words32)
def test_there_and_back_is_where_one_was(check: int, old: int, new: int) -> None:
    delta = wire.difference(old, new)
    there = wire.adjusted(check, delta)
    assert wire.adjusted(there, wire.negated(delta)) % 0xFFFF == check % 0xFFFF
    assert wire.adjusted(there, wire.difference(new, old)) % 0xFFFF == check % 0xFFFF


@given(st.integers(0, (1 << 48) - 1))
def test_fold_keeps_the_remainder(total: int) -> None:
    folded = wire.fold(total)
    assert 0 <= folded <= 0xFFFF and folded % 0xFFFF == total % 0xFFFF and (folded == 0) == (total == 0)


def test_a_udp_checksum_never_becomes_none_nor_stops_being_none() -> None:
    """RFC 768: 0 on the wire means none, so a sum that comes out as 0 is sent as 0xFFFF."""
    frames = memory(bytes(8))
    for delta in range(0, 0x10000, 7):
        for check in (delta, 0x1234, 0xFFFF, 1):  # the first comes out as 0
            native.write16(frames, 6, check or 1)
            rewrite.adjust_transport(frames, 0, UDP, delta)
            assert native.read16(frames, 6) != 0
        native.write16(frames, 6, 0)
        rewrite.adjust_transport(frames, 0, UDP, delta)
        assert native.read16(frames, 6) == 0


@pytest.mark.parametrize(("protocol", "at"), [(TCP, 16), (ICMP, 2), (UDP, 6)])
def test_each_protocol_has_its_checksum_where_its_rfc_says(protocol: int, at: int) -> None:
    frames = memory(b"\x11" * 20)
    rewrite.adjust_transport(frames, 0, protocol, 0x0101)
    assert np.flatnonzero(frames != 0x11).tolist() == [at, at + 1]
