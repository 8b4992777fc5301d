"""msgpack in compiled code: as much of it as headers of changes and acknowledgements consist of. (msgpack spec, formats.)"""

from __future__ import annotations

import numpy as np

from shards.jit import hot, whole
from shards.native import write16, write32, write64
from shards.state import Array


def text(*words: str) -> Array:
    """Keys and what else in a header never changes, as msgpack has it: short texts, and bytes in hexadecimal."""
    parts = (bytes.fromhex(word[1:]) if word[0] == "#" else bytes([0xA0 | len(word)]) + word.encode() for word in words)
    return np.frombuffer(b"".join(parts), np.uint8)


@hot
def read_text(memory: Array, at: int, end: int, text: Array) -> int:
    """Where it goes on behind a text that stands here; -1 where none does, or `at` is that already."""
    if at < 0 or at + len(text) > end:
        return -1
    for k in range(len(text)):
        if memory[at + k] != text[k]:
            return -1
    return at + len(text)


@hot
def read_big(memory: Array, at: int, size: int) -> int:
    """A number of so many bytes, the first of which counts most."""
    value = 0
    for k in range(size):
        value = value << 8 | whole(memory[at + k])
    return value


@hot
def read_whole(memory: Array, at: int, end: int) -> tuple[int, int]:
    """A whole number below 2**63, and where it goes on; -1 where none stands here. (msgpack spec, int format family.)"""
    if at < 0 or at >= end:
        return 0, -1
    first = whole(memory[at])
    if first < 0x80:
        return first, at + 1
    if first < 0xCC or first > 0xCF:
        return 0, -1
    size = 1 << (first - 0xCC)
    if at + 1 + size > end:
        return 0, -1
    value = read_big(memory, at + 1, size)
    return (value, at + 1 + size) if value >= 0 else (0, -1)


@hot
def read_length(memory: Array, at: int, end: int) -> tuple[int, int]:
    """Of an array, and where its first thing stands; -1 where none does."""
    if at < 0 or at + 3 > end:
        return 0, -1
    if memory[at] & 0xF0 == 0x90:
        return whole(memory[at] & 0x0F), at + 1
    return (read_big(memory, at + 1, 2), at + 3) if memory[at] == 0xDC else (0, -1)


@hot
def write_text(memory: Array, at: int, text: Array) -> int:
    """A text as it is; where it goes on."""
    for k in range(len(text)):
        memory[at + k] = text[k]
    return at + len(text)


@hot
def write_whole(memory: Array, at: int, value: int) -> int:
    """A whole number in its shortest form; where it goes on."""
    if value < 0x80:
        memory[at] = value
        return at + 1
    if value < 0x100:
        memory[at], memory[at + 1] = 0xCC, value
        return at + 2
    if value < 0x10000:
        memory[at] = 0xCD
        write16(memory, at + 1, value)
        return at + 3
    if value < 0x100000000:
        memory[at] = 0xCE
        write32(memory, at + 1, value)
        return at + 5
    memory[at] = 0xCF
    write64(memory, at + 1, value)
    return at + 9


@hot
def write_length(memory: Array, at: int, count: int) -> int:
    """Of an array."""
    if count < 16:
        memory[at] = 0x90 | count
        return at + 1
    memory[at] = 0xDC
    write16(memory, at + 1, count)
    return at + 3
