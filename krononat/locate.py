"""Where in the file a value stands: `tomllib` tells values without places, so this walks the same text again for places alone.

The text is known to be valid TOML when it comes here, which is why nothing is checked twice.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

Path = tuple[str | int, ...]
ANY = "*"  # in a path: any entry

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'', re.S)
_EXCERPT = 120  # characters
_SCALAR = re.compile(r"[^,\]}#\n]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")


class Place(NamedTuple):
    """Line and column, both from 1."""

    line: int
    column: int


class Complaint(NamedTuple):
    """Something wrong with the configuration; `path` is where in the tree, `place` where in the file (if known).

    `needs` are paths (with ANY for any entry) that must have been right, besides its own, for this to be true.
    """

    path: Path
    what: str
    place: Place | None = None
    needs: tuple[Path, ...] = ()

    @property
    def key(self) -> str:
        """The path as people write it: pool[0].prefixes[1]."""
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).lstrip(".")

    def rests_on(self, broken: Iterable[Path]) -> bool:
        """Whether this says something about a broken value, or about one inside it."""
        return any(_holds(outer, inner) for outer in broken for inner in (self.path, *self.needs))


def _holds(outer: Path, inner: Path) -> bool:
    same = all(ours == theirs or theirs == ANY for ours, theirs in zip(outer, inner, strict=False))
    return same and len(outer) <= len(inner)


class Places:
    """Offsets of every key and value of a TOML text, by path."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.keys: dict[Path, int] = {}
        self.values: dict[Path, int] = {}
        self._entries: dict[Path, int] = {}  # arrays of tables: how many so far
        self._walk()

    def of(self, path: Path, key: bool = False) -> Place:
        """Place of the value (or the key) at `path`; of the nearest table around it where there is none."""
        for length in range(len(path), 0, -1):
            first, second = (self.keys, self.values) if key or length < len(path) else (self.values, self.keys)
            at = first.get(path[:length], second.get(path[:length]))
            if at is not None:
                return self._place(at)
        return Place(1, 1)

    def _place(self, at: int) -> Place:
        return Place(self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at))

    def _walk(self) -> None:
        table: Path = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found.group()

    def _header(self) -> Path:
        start = self.at
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        path = self._inside(self._key())
        if brackets == 2:
            self._entries[path] = self._entries.get(path, -1) + 1
            self.keys.setdefault(path, start)
            path = (*path, self._entries[path])
        self._skip(_SPACE)
        self.at += brackets
        self.keys.setdefault(path, start)
        return path

    def _inside(self, names: list[str]) -> Path:
        """Path of a table header: each array of tables on the way stands for its last entry."""
        path: Path = ()
        for name in names[:-1]:
            path = (*path, name)
            if path in self._entries:
                path = (*path, self._entries[path])
        return (*path, names[-1])

    def _key(self) -> list[str]:
        names = []
        while True:
            self._skip(_SPACE)
            quoted = self._skip(_STRING)
            names.append(quoted[1:-1] if quoted else self._skip(_BARE))
            self._skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return names
            self.at += 1

    def _pair(self, table: Path) -> None:
        start = self.at
        path = (*table, *self._key())
        for length in range(len(table) + 1, len(path) + 1):
            self.keys.setdefault(path[:length], start)
        self.at += 1  # "="
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        self.values[path] = self.at
        if self.text.startswith("[", self.at):
            self._items(path, "]")
        elif self.text.startswith("{", self.at):
            self._items(path, "}")
        elif not self._skip(_STRING):
            self._skip(_SCALAR)

    def _items(self, path: Path, end: str) -> None:
        self.at += 1
        number = 0
        self._skip(_BLANK)
        while not self.text.startswith(end, self.at):
            if end == "]":
                self._value((*path, number))
                number += 1
            else:
                self._pair(path)
            self._skip(_BLANK)
            if self.text.startswith(",", self.at):
                self.at += 1
                self._skip(_BLANK)
        self.at += 1


def closest(word: str, words: Iterable[str]) -> str:
    """The one of `words` that is nearest to `word`; empty where none is near."""
    return next(iter(difflib.get_close_matches(word, list(words), 1, 0.6)), "")


def nearest(word: str, words: Iterable[str]) -> str:
    """' (did you mean "udp"?)' where one of `words` is near, else nothing."""
    near = closest(word, words)
    return f' (did you mean "{near}"?)' if near else ""


def render(complaint: Complaint, name: str, text: str) -> str:
    """`file:line:column: key: what`, and beneath it the line with a caret."""
    line, column = complaint.place or Place(1, 1)
    told = f"{name}:{line}:{column}: " + (f"{complaint.key}: " if complaint.path else "") + complaint.what
    lines = text.splitlines()
    if line > len(lines) or not lines[line - 1].strip():
        return told
    return f"{told}\n{_excerpt(lines[line - 1], column)}"


def _excerpt(line: str, column: int) -> str:
    """What is around a column of a line, with a caret beneath; nothing in it reaches a terminal as a command."""
    begin = max(column - _EXCERPT // 2, 0) if len(line) > _EXCERPT else 0
    shown = (char if char.isprintable() else " " if char == "\t" else "\ufffd" for char in line[begin : begin + _EXCERPT])
    return f"    {''.join(shown)}\n    {' ' * (column - 1 - begin)}^"
