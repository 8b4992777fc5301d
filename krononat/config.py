"""Reading a configuration: text -> values (`tomllib`) -> models (`models`) -> rules between them (`checks`), or complaints with
their places (`locate`); and writing it back in canonical form, which parses to the same again.

Everything that is wrong is told at once: where fields are wrong, the rules look at the rest (`mend`).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic_core import ErrorDetails

from krononat import checks, locate
from krononat.client import BAD_CONFIG, Trouble
from krononat.fields import choices_at, describe, keys_at, meant
from krononat.locate import Complaint, Place, Places, nearest
from krononat.mend import Mended, mend, written
from krononat.models import Config
from krononat.values import PLANNED_KEYS

__all__ = ["Config", "ConfigError", "canonical", "describe", "keys_at", "load", "read"]


BYTES_AT_MOST = 64 << 20  # of a file; some devices have no end


class ConfigError(Trouble):
    """A configuration that is refused; `complaints` in the order of the file, `told()` renders them with their lines."""

    def __init__(self, name: str, text: str, complaints: list[Complaint]) -> None:
        super().__init__(f"{name} is not a right configuration", status=BAD_CONFIG)
        self.name, self.text = name, text
        self.complaints = sorted(complaints, key=lambda complaint: complaint.place or Place(1, 1))

    def told(self) -> str:
        """Every complaint: file:line:column, and beneath it the line with a caret."""
        return "\n".join(locate.render(complaint, self.name, self.text) for complaint in self.complaints)

    __str__ = told


def load(path: str | Path) -> Config:
    """Configuration of a file; ConfigError where it is not a right one, or cannot be read."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(BYTES_AT_MOST + 1)
    except OSError as error:
        raise ConfigError(str(path), "", [Complaint((), f"cannot be read: {error.strerror}")]) from None
    if len(raw) > BYTES_AT_MOST:
        raise ConfigError(str(path), "", [Complaint((), f"is longer than {BYTES_AT_MOST >> 20} MiB: is it a configuration?")])
    return read(raw.decode(errors="replace"), str(path))


def read(text: str, name: str = "config") -> Config:
    """Configuration of a TOML text; `name` is what complaints call it. ConfigError with every complaint found."""
    text = text.replace("\r\n", "\n")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(name, text, [_syntax(error, text)]) from None
    mended = mend(values)
    found = complaints(mended)
    if found or not mended.config:
        raise ConfigError(name, text, _located(found, text))
    return mended.config


def complaints(mended: Mended) -> list[Complaint]:
    """Everything that is wrong: the fields, and what the right ones say between them. Paths are those of the file."""
    mistyped = [(*told["loc"][:-1], meant(told["loc"])) for told in mended.errors if told["type"] == "extra_forbidden"]
    errors = [told for told in mended.errors if told["type"] != "missing" or told["loc"] not in mistyped]
    found = checks.refusals(mended.config) if mended.config else []
    told = [_refusal(told) for told in errors] + [told for told in found if not told.rests_on(mended.broken)]
    return _as_written(told, mended.values)


def _as_written(complaints: list[Complaint], values: dict[str, Any]) -> list[Complaint]:
    return [told._replace(path=written(told.path, values)) for told in complaints]


def warnings(config: Config, text: str, name: str) -> list[str]:
    """What is accepted but likely not meant, rendered with places."""
    doubts = _as_written(checks.doubts(config), tomllib.loads(text))
    return [locate.render(complaint, name, text) for complaint in _located(doubts, text)]


def _located(complaints: list[Complaint], text: str) -> list[Complaint]:
    places = Places(text)
    return [told._replace(place=places.of(told.path, key=told.what.startswith("unknown key"))) for told in complaints]


def _syntax(error: tomllib.TOMLDecodeError, text: str) -> Complaint:
    """`tomllib` puts the place into its message: "... (at line 3, column 7)" or "(at end of document)"."""
    what, _, where = str(error).partition(" (at ")
    numbers = [int(word.strip(",)")) for word in where.split() if word.strip(",)").isdigit()]
    place = Place(*numbers) if len(numbers) == 2 else Place(text.count("\n") + 1, len(text) - text.rfind("\n"))
    return Complaint((), f"not TOML: {what[:1].lower()}{what[1:]}", place)


def _refusal(error: ErrorDetails) -> Complaint:
    """One complaint of pydantic in our words."""
    path, kind, given = error["loc"], error["type"], error["input"]
    context = error.get("ctx", {})
    if kind == "extra_forbidden":
        return Complaint(path, _unknown(path))
    if kind == "missing":
        return Complaint(path, f"is missing: {describe(path) or 'needed'}")
    if kind == "value_error":
        return Complaint(path, f"{context['error']}{_got(given)}")
    if kind == "literal_error":
        words = [str(word) for word in choices_at(path)]
        return Complaint(path, f"must be one of {', '.join(words)}{_got(given)}{nearest(str(given), words)}")
    if kind == "string_pattern_mismatch":
        return Complaint(path, f"{given!r} does not fit: {describe(path)}")
    message = error["msg"].replace("Input should be", "must be").replace("Input should", "must")
    if kind in ("model_type", "dict_type"):
        message = "must be a table"
    return Complaint(path, f"{message}{_got(given)}")


def _got(given: Any) -> str:
    return f"; got {given!r}" if isinstance(given, str | int | float | bool) else ""


def _unknown(path: tuple[str | int, ...]) -> str:
    key = str(path[-1])
    if key in PLANNED_KEYS:
        return f"unknown key {key!r}: {PLANNED_KEYS[key]}"
    near = f' (did you mean "{meant(path)}"?)' if meant(path) else f"; known here: {', '.join(keys_at(path[:-1]))}"
    return f"unknown key {key!r}{near}"


def canonical(config: Config) -> str:
    """The configuration as TOML with all defaults filled in; parses to the same model."""
    values = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return "\n".join(_body((), values)).lstrip("\n") + "\n"


def _body(path: tuple[str, ...], table: dict[str, Any], nested: bool = False) -> list[str]:
    """Plain values first, sub-tables after them; within an array of tables a table of plain values stays on its line."""
    lines, later = [], []
    for key, value in table.items():
        if _is_plain(value) or (nested and _is_flat(value)):
            lines.append(f"{key} = {_inline(value)}")
        elif isinstance(value, list):
            later += [line for entry in value for line in _table(f"[[{'.'.join((*path, key))}]]", (*path, key), entry, True)]
        else:
            later += _table(f"[{'.'.join((*path, key))}]", (*path, key), value, nested)
    return lines + later


def _table(header: str, path: tuple[str, ...], table: dict[str, Any], nested: bool) -> list[str]:
    """A table under its header; one without values of its own needs none."""
    lines = _body(path, table, nested)
    return ["", header, *lines] if lines and lines[0] else lines


def _is_plain(value: Any) -> bool:
    entries = value if isinstance(value, list) else [value]
    return not any(isinstance(entry, dict) for entry in entries) and value != []


def _is_flat(value: Any) -> bool:
    entries = value if isinstance(value, list) else [value]
    return bool(value) and all(isinstance(entry, dict) and all(map(_is_plain, entry.values())) for entry in entries)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else _quoted(value)


def _quoted(text: str) -> str:
    """Basic string; TOML forbids control characters and DEL in it unescaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if " " <= char != "\x7f" else f"\\u{ord(char):04x}" for char in escaped) + '"'
