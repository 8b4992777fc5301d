"""Frames of replication say what they were told, and refuse everything else; keys are files that only their owner reads."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication import keys
from replication.frames import BODY_AT_MOST, KINDS, REASONS, UNDERSTOOD, VERSION, Frame, Refused, decode, encode
from shards.records import HOLD, MAPPING_RECORD, SESSION_RECORD, TOMBSTONE

FIELDS = st.dictionaries(
    st.text(max_size=9), st.integers(0, 2**64 - 1) | st.text(max_size=9) | st.binary(max_size=9), max_size=4
)


@st.composite
def frames(draw: st.DrawFn) -> tuple[Frame, bytes]:
    """A frame of any kind with a body of its own shape."""
    kind = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    counts = tuple(8 * draw(st.integers(0, 20)) for _ in kind.eighths)
    size = sum(count * eighths for count, eighths in zip(counts, kind.eighths, strict=True)) // 8
    most = 2**64 - 1, 2**48, 2**16 - 1, 2**32 - 1, 2**32 - 1
    life, number, shard, epoch, series = (draw(st.integers(0, last)) for last in most)
    version = draw(st.sampled_from([version for version in UNDERSTOOD if version >= kind.since]))
    frame = Frame(kind.name, life, number, shard, epoch, series, counts, draw(FIELDS), version)
    return frame, draw(st.binary(min_size=size, max_size=size))


@given(frames())
def test_what_is_encoded_is_decoded(told: tuple[Frame, bytes]) -> None:
    frame, body = told
    header = encode(frame, body)
    assert decode(header, body) == frame
    assert msgpack.unpackb(header, strict_map_key=False)["k"] == frame.kind  # the checksum is part of the map


@given(frames(), st.data())
def test_no_changed_bit_passes(told: tuple[Frame, bytes], data: st.DataObject) -> None:
    frame, body = told
    header = encode(frame, body)
    whole = bytearray(header + body)
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Refused) as refused:
        decode(bytes(whole[: len(header)]), bytes(whole[len(header) :]))
    assert refused.value.reason == "corrupted"


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_nonsense_is_refused(header: bytes, body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        decode(header, body)
    assert refused.value.reason in REASONS


def test_parts_of_bodies_are_the_records_that_they_are_counted_in() -> None:
    update = (TOMBSTONE.itemsize, MAPPING_RECORD.itemsize, SESSION_RECORD.itemsize)
    assert KINDS["update"].eighths == tuple(8 * size for size in update)
    assert KINDS["holds"].eighths == (8 * HOLD.itemsize,)
    assert set(UNDERSTOOD) == {VERSION, VERSION - 1}


def test_a_body_has_an_end() -> None:
    body = bytes(BODY_AT_MOST + 8)
    with pytest.raises(Refused) as refused:
        decode(encode(Frame("update", counts=(len(body) // 8, 0, 0)), body), body)
    assert refused.value.reason == "malformed"


# --- keys -----------------------------------------------------------------------------------------------------------------


def test_a_key_is_written_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    path, key = tmp_path / "key", keys.generate()
    keys.write(path, key)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.read(path) == key
    with pytest.raises(FileExistsError):
        keys.write(path, keys.generate())
    path.chmod(0o640)
    with pytest.raises(ValueError, match="can be read by others than its owner"):
        keys.read(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no key pair"),
        ("public = 'x'\nsecret = 'y'\n", "40 characters"),
        ("public = '{0}'\nsecret = '{1}'\n", "not a pair"),
        ("public = '~{0:.39}'\nsecret = '{1}'\n", "has others"),
        ("public = '{0}'\n", "secret"),
    ],
)
def test_a_file_that_is_no_key(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(text.format(keys.generate().public.decode(), keys.generate().secret.decode()))
    with pytest.raises(ValueError, match=why):
        keys.read(path)
