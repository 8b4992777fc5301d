"""What the demonstration leaves behind: report.json for programs, report.md for people, and a picture."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from krononat.client import Trouble
from krononat.lab.conservation import Closed, Counts, Line
from krononat.lab.picture import draw
from krononat.lab.traffic import Outcome

SCHEMA = 1


class Report:
    """Collects outcomes as they come."""

    def __init__(self) -> None:
        self._began = time.time()
        self._outcomes: list[tuple[Outcome, float]] = []
        self._tables: dict[str, tuple[str, str]] = {}
        self._logs: dict[str, str] = {}
        self._lines: list[Line] = []
        self._counts: Counts = {}

    @property
    def held(self) -> bool:
        """Whether every claim so far held."""
        return all(outcome.held for outcome, _ in self._outcomes)

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.time() - self._began

    def add(self, try_it: Callable[[], Outcome]) -> Outcome:
        """Try a claim; an error for people is a claim that did not hold."""
        began = time.monotonic()
        try:
            outcome = try_it()
        except Trouble as trouble:
            outcome = Outcome(getattr(try_it, "__name__", "claim"), False, f"{trouble.what}: {trouble.why}", {})
        self._outcomes.append((outcome, round(time.monotonic() - began, 2)))
        return outcome

    def table(self, title: str, words: Sequence[str], text: str) -> None:
        """Keep what a command printed."""
        self._tables[title] = (f"krononat {' '.join(words)}", text)

    def log(self, title: str, text: str) -> None:
        """Keep the end of a log, for what did not hold."""
        self._logs[title] = text

    def keep_books(self, closed: Closed) -> Outcome:
        """Keep a closed ledger; its outcome."""
        self._lines, self._counts = closed.lines, closed.counts
        return closed.outcome

    def write(self, folder: Path) -> None:
        """Write report.json, report.md and lab.svg."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self._as_json(), indent=2) + "\n")
        (folder / "report.md").write_text(self._as_text())
        (folder / "lab.svg").write_text(draw(self._counts))

    def _as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "held": self.held,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "seconds": round(self.seconds, 1),
            "environment": _environment(),
            "claims": [{**outcome._asdict(), "seconds": seconds} for outcome, seconds in self._outcomes],
            "ledger": [{**line._asdict(), "holds": line.holds} for line in self._lines],
            "counts": self._counts,
            "tables": {title: {"command": command, "text": text} for title, (command, text) in self._tables.items()},
            "logs": self._logs,
        }

    def _as_text(self) -> str:
        parts = [f"# Krononat in the laboratory: {'everything held' if self.held else 'NOT everything held'}", ""]
        parts += ["![topology with packet counts](lab.svg)", ""]
        parts += [f"{key}: {value}  " for key, value in _environment().items()]
        parts += ["", "Figures are those of veth interfaces in one virtual machine, not of network cards.", ""]
        parts += ["| claim | held | what came of it | s |", "|---|---|---|---:|"]
        for outcome, seconds in self._outcomes:
            parts.append(f"| {outcome.name} | {_yes(outcome.held)} | {_cell(outcome.told)} | {seconds} |")
        parts += ["", "## Where every packet went", "", "| equation | one count | the other | holds |", "|---|---:|---:|---|"]
        parts += [f"| {line.told} | {line.left:,} | {line.right:,} | {_yes(line.holds)} |" for line in self._lines]
        for title, (command, text) in self._tables.items():
            parts += ["", f"## {title.capitalize()}", "", "```", f"$ {command}", text.rstrip(), "```"]
        for title, text in self._logs.items():
            parts += ["", f"## Log of {title}", "", "```", text, "```"]
        return "\n".join(parts) + "\n"


def _yes(held: bool) -> str:
    return "yes" if held else "**NO**"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _environment() -> dict[str, str]:
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), platform.machine())
    versions = {name: metadata.version(name) for name in ("numba", "numpy")}
    return {
        "kernel": platform.release(),
        "cpu": f"{os.cpu_count()} of {model}",
        "python": platform.python_version(),
        **versions,
    }
