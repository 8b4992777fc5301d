"""Pictures of results: a panel per unit, a bar per figure with its spread, and the goal as a mark on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import report
from bench.report import LESS_IS_BETTER, Result

_PLAIN, _REACHED, _MISSED, _GOAL, _INK = "#8fa8c8", "#5b9a72", "#c8705a", "#222222", "#444444"
_ROW_INCHES, _PANEL_INCHES, _TITLE_INCHES = 0.3, 0.6, 0.3  # a bar; what a panel has besides; what stands above them
_WIDTH_INCHES = 9.0

_WORDS = {"x": "ratio", "M/s": "million a second", "B": "bytes", "us": "microseconds", "ms": "milliseconds", "s": "seconds"}


def draw(results: Sequence[Result], title: str, path: Path) -> None:
    """Write an SVG of all these results."""
    panels = {unit: [result for result in results if result.unit == unit] for unit in _units(results)}
    rows = [len(panel) for panel in panels.values()]
    size = (_WIDTH_INCHES, _ROW_INCHES * sum(rows) + _PANEL_INCHES * len(rows) + _TITLE_INCHES)
    # The same results make the same file: no date, no random names.
    with matplotlib.rc_context(
        {"font.size": 9, "svg.hashsalt": "krononat", "svg.fonttype": "none", "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)
        for (unit, panel), each in zip(panels.items(), axes[:, 0], strict=True):
            _panel(each, unit, panel)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=_INK)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _units(results: Sequence[Result]) -> list[str]:
    """Ratios first: they are what a machine's speed has least to do with."""
    return sorted(dict.fromkeys(result.unit for result in results), key=lambda unit: unit != "x")


def _panel(axes: Axes, unit: str, rows: Sequence[Result]) -> None:
    places = range(len(rows))
    axes.barh(places, [row.value for row in rows], height=0.62, color=[_colour(row) for row in rows])
    for place, row in zip(places, rows, strict=True):
        if row.high > row.low:
            axes.errorbar([row.value], [place], xerr=_spread(row), fmt="none", ecolor=_INK, elinewidth=1, capsize=2.5)
        if row.goal is not None:
            axes.plot([row.goal, row.goal], [place - 0.42, place + 0.42], color=_GOAL, linewidth=2)
        axes.annotate(
            _told(row), (max(row.high, row.goal or 0), place), (5, 0), textcoords="offset points", va="center", color=_INK
        )
    axes.set_yticks(places, [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(
        min(0, *(row.low for row in rows)), 1.15 * max((max(row.high, row.goal or 0) for row in rows), default=1) or 1
    )
    side = "less is better" if unit in LESS_IS_BETTER else "more is better"
    axes.set_xlabel(f"{_WORDS.get(unit, unit)} ({side}; whiskers: lowest and highest; black mark: goal)", color=_INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _spread(row: Result) -> list[list[float]]:
    return [[row.value - row.low], [row.high - row.value]]


def _colour(row: Result) -> str:
    return {None: _PLAIN, True: _REACHED, False: _MISSED}[row.ok]


def _told(row: Result) -> str:
    return report.figure(row.value) + (f", loss {row.loss:.2g}" if row.loss else "")
