"""CURVE keys, a pair per core: the public one stands in the cluster's map, the secret one in a file for its owner alone."""

from __future__ import annotations

import os
import stat
import struct
import tomllib
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

_LENGTH = 40  # characters of Z85: 32 bytes
_TEXT = """# Secret key of one core's replication link (CURVE). Whoever has it is that core for its peers: keep it to yourself.
public = '{public}'
secret = '{secret}'
"""


class Key(NamedTuple):
    """A pair, both as Z85."""

    public: bytes
    secret: bytes


def generate() -> Key:
    """A new pair."""
    return Key(*zmq.curve_keypair())


def write(path: Path, key: Key) -> None:
    """Make the file, mode 0600; FileExistsError where there is one: a lost key cuts the core off from its peers."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(_TEXT.format(public=key.public.decode(), secret=key.secret.decode()))


def read(path: Path) -> Key:
    """The pair in a file; ValueError where it is none, or where others may read it."""
    with open(path, "rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise ValueError(f"{path} can be read by others than its owner; make a new key, or: chmod 600 {path}")
        try:
            told = tomllib.load(file)
            key = Key(check(told["public"]), check(told["secret"]))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} holds no key pair ({error}); `krononat cluster key {path}` makes one") from None
    if zmq.curve_public(key.secret) != key.public:
        raise ValueError(f"the two keys in {path} are not a pair; `krononat cluster key` makes one")
    return key


def check(text: object) -> bytes:
    """A key as the map or a file has it, as bytes; ValueError where it cannot be one."""
    if not isinstance(text, str) or len(text) != _LENGTH or not text.isascii():
        raise ValueError(f"a CURVE key is {_LENGTH} characters of Z85")
    try:
        z85.decode(text.encode())
    except (KeyError, struct.error):
        raise ValueError(f"a CURVE key is {_LENGTH} characters of Z85, this one has others") from None
    return text.encode()
