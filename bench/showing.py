"""`krononat bench show`: a cluster of three servers under real traffic, moved, drained, broken and mended, in one table.

What ./run.sh shows at its end: of the happenings of `bench events` some that an operator would try first, a line each, with
what its users noticed beside the goal. Exit status 0 only where every goal was met; the proof is in the folder of `--report`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from bench import events, report
from bench.cluster.happenings import Happening, graceful, hard
from bench.events import show as carry_out
from bench.events import wanted
from bench.report import Result
from krononat.client import Trouble

KIND = "veth"
WANTED = ("migrate", "drain", "server", "link", "undrain")  # in this order
BACK = {"server": "the killed server comes back", "link": "the link has its carrier again"}  # a line of its own
COLUMNS = ("what happened", "lost", "others", "outage ms", "sessions kept", "last 10 ms", "well again")
_FIGURES = ("lost", "others_lost", "outage_ms", "older", "last10ms", "settled_s")
_IN_ALL = {
    "events/un_natted": "packets that left untranslated",
    "events/two_owners": "external endpoints with two owners",
    "events/broken": "runs of programs that failed (iperf3, curl, scp, ssh, a call)",
    "events/programs": "runs of programs",
}


def chosen(tor: str) -> tuple[Happening, ...]:
    """What is shown."""
    known = {each.name: each for each in (*graceful(), *hard(tor))}
    return tuple(known[name] for name in WANTED)


def rows(happenings: Sequence[Happening], results: Sequence[Result]) -> list[list[str]]:
    """A line for each, and one for its being set right: figures, each with its goal where it has one."""
    by_name = {result.name: result for result in results}
    lines = []
    for each in happenings:
        lines.append([_head(by_name, each), *(_cell(by_name, each.name, figure) for figure in _FIGURES)])
        if f"events/{each.name}/back/lost" in by_name:
            lines.append([BACK[each.name], *(_cell(by_name, f"{each.name}/back", figure) for figure in _FIGURES)])
    return lines


def _head(by_name: dict[str, Result], each: Happening) -> str:
    failed = by_name[f"events/{each.name}/failed"].value
    return f"{each.told} (MISSED: it failed)" if failed else each.told


def _cell(by_name: dict[str, Result], name: str, figure: str) -> str:
    result = by_name.get(f"events/{name}/{figure}")
    if result is None and name.endswith("/back"):  # it is told of the whole, in the line above
        return ""
    assert result
    unit = {"%": " %", "s": " s"}.get(result.unit, "")
    shown = f"{report.figure(result.value) if result.value % 1 else f'{result.value:.0f}'}{unit}"
    if figure in ("older", "last10ms"):
        connections = by_name[f"events/{name}/{figure}/connections"].value
        shown = f"{shown} of {connections:,.0f}" if connections else "nobody connected then"
    if result.goal is None:
        return shown
    sign = "≤" if result.unit in report.LESS_IS_BETTER else "≥"
    return f"{shown} ({sign} {result.goal:g}{'' if result.ok else ': MISSED'})"


def in_all(results: Sequence[Result]) -> list[str]:
    """What holds of all of it, in sentences."""
    return [f"{result.value:,.0f} {_IN_ALL[result.name]}" for result in results if result.name in _IN_ALL]


def held(results: Sequence[Result]) -> bool:
    """Whether no goal was missed."""
    return all(result.ok is not False for result in results)


def write(folder: Path, table: Sequence[Sequence[str]], told: Sequence[str], results: Sequence[Result]) -> None:
    """cluster.md and cluster.json."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [" | ".join(each) for each in (COLUMNS, ["---"] * len(COLUMNS), *table)]
    text = "\n".join([*(f"| {line} |" for line in lines), "", *(f"* {line}" for line in told), ""])
    (folder / "cluster.md").write_text(f"# A cluster under traffic\n\n{text}")
    (folder / "cluster.json").write_text(json.dumps({"results": [asdict(result) for result in results]}, indent=2))


@click.command("show", help="A cluster moved, drained, broken and mended.\n\nExample: krononat bench show --report report")
@click.option("--tor", type=click.Choice(["bird", "frr"]), default="bird", show_default=True, help="Switches' daemon.")
@click.option("--cores", type=click.IntRange(1, 4), help=events.CORES.help)
@click.option("--report", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder for its proof.")
def show(tor: str, cores: int | None, folder: Path | None) -> None:
    """See the module."""
    happenings = chosen(tor)
    try:
        with report.progress("show") as told:
            results = carry_out(wanted(tor, cores=cores), happenings, 1, told)
    except Trouble as trouble:
        click.echo(trouble.told(), err=True)
        sys.exit(trouble.status)
    table, said = rows(happenings, results), in_all(results)
    _print(table, said)
    if folder:
        write(folder, table, said, results)
    sys.exit(not held(results))


def _print(table: Sequence[Sequence[str]], said: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        shown.add_column(column)
    for line in table:
        shown.add_row(*line, style="red" if any("MISSED" in cell for cell in line) else "")
    console.print(shown)
    for line in said:
        console.print(line)


if __name__ == "__main__":
    show()
