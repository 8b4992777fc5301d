"""What `krononat shard` and `server` have in common: look at the cluster, show a plan, have it agreed to, carry it out."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from krononat import client
from krononat.cli.output import Row, open_memory, print_json, print_table
from replication.layout import Home, Step
from replication.placement import Move, Place, server_of

Command = TypeVar("Command", bound=Callable[..., Any])

EVERY_S = 0.1  # between two looks at a move
PLAN = ("shard", "kind", "source", "target", "why")

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan as JSON and change nothing.")
timeout_option = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1), default=300.0, show_default=True, metavar="S", help="Of each shard."
)


def core_name(_: click.Context, __: click.Parameter, name: str) -> str:
    """Callback of an argument that names a core."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[0-9]{1,4}", name):
        raise click.BadParameter(f"{name!r} is no core: SERVER/NUMBER, s2/0 say; `krononat server list` tells which there are")
    return name


class View(NamedTuple):
    """What the cores that can be asked here know of the cluster."""

    paths: dict[str, str]  # control socket of each core that answered
    shards: list[dict[str, Any]]
    cores: list[dict[str, Any]]

    def path(self, core: str, what: str) -> str:
        """Socket of the core that has `what`; Trouble where that core, or its socket, is elsewhere."""
        if core in self.paths:
            return self.paths[core]
        if not core:
            raise client.Trouble(f"nobody has {what}", "no core has the authority now", "krononat shard list")
        told, remedy = f"{core} has it, whose control socket is not here", f"run this on {server_of(core)}"
        raise client.Trouble(f"{what} is another core's", told, f"{remedy}, or name its socket with --socket")

    def known(self, core: str) -> None:
        """Trouble where the map has no such core."""
        names = [row["core"] for row in self.cores]
        if core not in names:
            told = f"there are: {', '.join(names)}"
            raise client.Trouble(f"there is no core {core!r}", told, "krononat server list", client.NOT_FOUND)

    def shard(self, number: int) -> dict[str, Any]:
        """Row of a shard; Trouble where there is none."""
        for row in self.shards:
            if row["shard"] == number:
                return row
        told = f"the map has shards 0 to {len(self.shards) - 1}"
        raise client.Trouble(f"there is no shard {number}", told, "krononat shard list", client.NOT_FOUND)

    def places(self) -> list[Place]:
        """Where each shard is that has an owner now."""
        return [Place(row["shard"], row["active"], row["passive"] or None) for row in self.shards if row["active"]]

    def homes(self) -> dict[int, Home]:
        """The same as a layout."""
        return {row["shard"]: Home(row["active"], row["passive"] or None) for row in self.shards if row["active"]}

    def epochs(self) -> dict[int, int]:
        """Epoch of each shard, as the core that has it says."""
        return {row["shard"]: row["epoch"] for row in self.shards}

    def loads(self) -> dict[int, float]:
        """Sessions of each shard; where there are none at all, each shard counts the same."""
        found = {row["shard"]: float(row["sessions"]) for row in self.shards}
        return found if any(found.values()) else dict.fromkeys(found, 1.0)

    def alive(self) -> list[str]:
        """Cores that may be given something."""
        return [row["core"] for row in self.cores if row["evidence"] == "alive"]


def look(socket: str | None) -> View:
    """The view of the core with this control socket, or of all cores that run here; Trouble where nobody answers."""
    answers = asked(socket, "shards", "cores")
    paths = {me: path for me, path, _ in answers}
    shards = _best((row for _, _, told in answers for row in told[0]), "shard", _owned)
    cores = _best(({**row, "asked": me} for me, _, told in answers for row in told[1]), "core", _own)
    return View(paths, shards, [{key: row[key] for key in row if key != "asked"} for row in cores])


def asked(socket: str | None, *what: str) -> list[tuple[str, str, list[list[dict[str, Any]]]]]:
    """(name, control socket, rows of each question) of each core here; who is silent is told of, Trouble where all are."""
    answers: list[tuple[str, str, list[list[dict[str, Any]]]]] = []
    troubles: list[client.Trouble] = []
    for path in sockets(socket):
        try:
            told = [client.rows(path, question) for question in what]
            answers.append((told[0][0], path, [rows for _, rows in told]))
        except client.Trouble as trouble:
            troubles.append(trouble)
    if not answers:
        raise troubles[0]
    for silent in troubles:
        click.echo(silent.told(), err=True)
    return answers


def _owned(row: Row) -> tuple[int, int]:
    return {"active": 2, "absent": 0}.get(row["role"], 1), row["epoch"]


def _own(row: Row) -> tuple[int, int]:
    return row["asked"] == row["core"], 0


def sockets(given: str | None) -> list[str]:
    """Control sockets to ask: the given one, or all in the given folder, else all there are."""
    folder = client.FOLDER if not given else Path(given)
    found = sorted(str(path) for path in folder.glob("*.sock")) if folder.is_dir() else []
    return found or [client.find_socket(given)]


def _best(rows: Iterable[dict[str, Any]], key: str, goodness: Callable[[Row], tuple[int, int]]) -> list[dict[str, Any]]:
    """Of the rows about the same thing, the one that knows it best."""
    best: dict[Any, dict[str, Any]] = {}
    for row in rows:
        if row[key] not in best or goodness(row) > goodness(best[row[key]]):
            best[row[key]] = row
    return [best[name] for name in sorted(best)]


def measured(view: View, seconds: float, by: str) -> dict[int, float]:
    """What each shard costs now: packets a second of the cores here, and sessions, which every core tells of all."""
    from krononat import loads  # late: numpy

    sessions = {row["shard"]: float(row["sessions"]) for row in view.shards}
    packets = _packets(view, seconds) if by != "sessions" else {}
    return loads.together(sessions, packets, {} if by == "packets" and packets else sessions)


def _packets(view: View, seconds: float) -> dict[int, float]:
    """Packets a second by shard, as two looks into the memory of all cores tell; empty, and said, where some cannot be read."""
    from krononat import loads

    elsewhere = sorted({row["active"] for row in view.shards if row["active"] and row["active"] not in view.paths})
    try:
        states = [] if elsewhere else [open_memory(path) for path in view.paths.values()]
    except client.Trouble as trouble:
        states, elsewhere = [], [f"some ({trouble.what})"]
    if elsewhere:
        click.echo(f"krononat: packets of {', '.join(elsewhere)} are not counted here: by sessions alone", err=True)
        return {}
    before, began = [loads.look(state) for state in states], time.monotonic()
    time.sleep(seconds)
    found: dict[int, float] = {}
    for state, then in zip(states, before, strict=True):
        for shard, rate in loads.rates(then, loads.look(state), time.monotonic() - began).items():
            found[shard] = found.get(shard, 0.0) + rate
    return found


# --- plans ----------------------------------------------------------------------------------------------------------------


def agree(question: str, yes: bool, show: Callable[[], None]) -> None:
    """Show a plan and have it agreed to; Trouble where nobody is there who could."""
    if yes:
        return
    if not sys.stdin.isatty():
        told = f"nobody is there to agree to it: {question}"
        raise client.Trouble("nothing was moved", told, "say --yes, or --dry-run to see the plan")
    show()
    click.confirm(question, abort=True)


def steps_of(moves: Sequence[Move]) -> list[Step]:
    """The same as steps of a plan."""
    return [Step(move.shard, "migrate", move.source, move.target, move.why) for move in moves]


def settled(moves: Sequence[Step], yes: bool, dry_run: bool, form: str) -> bool:
    """Show a plan, or have it agreed to; whether it is to be carried out."""
    rows = [move._asdict() for move in moves]
    if dry_run or not moves:
        print_json({"moves": rows}) if dry_run or form == "json" else click.echo("nothing to move")
        return False
    agree(f"Make {len(moves)} move{'s' * (len(moves) > 1)}?", yes, lambda: print_table(rows, PLAN))
    return True


def carry_out_all(view: View, moves: Sequence[Step], timeout_s: float, form: str, may: Callable[[], None]) -> None:
    """A plan of several moves, one after another, those first that can be made from here; the first that fails ends it.

    Of one shard the steps keep their order. `may` raises Trouble where no more may be begun.
    """
    done: list[dict[str, Any]] = []
    elsewhere = {move.shard for move in moves if move.source not in view.paths}
    try:
        for move in sorted(moves, key=lambda move: move.shard in elsewhere):
            may()
            path = view.path(move.source, f"shard {move.shard}")
            done.append(watch(path, begin(path, move.shard, move.target, move.kind == "copy"), timeout_s))
            if form != "json":
                click.echo(told(done[-1]))
    except client.Trouble as trouble:
        trouble.status = client.PARTIAL if done else trouble.status
        trouble.why = f"{trouble.why}; {len(done)} of {len(moves)} moves were made"
        raise
    finally:
        if form == "json":
            print_json({"moves": done})


# --- moves ----------------------------------------------------------------------------------------------------------------


def plan(path: str, shard: int, target: str, copies: bool = False) -> dict[str, Any]:
    """What a move would be, of the copy alone if so."""
    request = {"do": "migrate", "shard": shard, "target": target, "dry_run": True, **({"copies": True} if copies else {})}
    answer = client.ask(path, request)
    return dict(answer["plan"])


def begin(path: str, shard: int, target: str, copies: bool = False) -> int:
    """Begin a move, of the copy alone if so; its number."""
    request = {"do": "migrate", "shard": shard, "target": target, "dry_run": False, **({"copies": True} if copies else {})}
    return int(client.ask(path, request)["move"])


def watch(path: str, number: int, timeout_s: float) -> dict[str, Any]:
    """Wait for the end of a move, telling how it goes on; its figures. Trouble where it fails, or takes too long."""
    until, stage = time.monotonic() + timeout_s, ""
    while True:
        move = client.ask(path, {"do": "move"})["move"]
        if move is None or move["id"] != number:
            told = "the core knows nothing of it any more: it began anew, or has another one to do"
            raise client.Trouble(f"move {number} is lost from sight", told, "krononat shard list")
        stage = _progress(move, stage)
        if move["done"]:
            break
        if time.monotonic() > until:
            told, remedy = f"it is still at: {move['stage']}, and goes on", f"krononat shard show {move['shard']}"
            raise client.Trouble(f"shard {move['shard']} is not moved in {timeout_s:g} s", told, remedy, client.TIMED_OUT)
        time.sleep(EVERY_S)
    if not move["succeeded"]:
        remedy = f"krononat shard show {move['shard']}"
        raise client.Trouble(f"shard {move['shard']} was not moved to {move['target']}", move["why"], remedy)
    return dict(move)


def _progress(move: dict[str, Any], before: str) -> str:
    """Tell on stderr how a move goes on: a line that changes on a terminal, else one for each stage."""
    stage = str(move["stage"])
    line = f"shard {move['shard']} to {move['target']}: {stage}"
    if sys.stderr.isatty():
        lag = f", {move['lag_records']:,} rows behind" if move["lag_records"] else ""
        click.echo(f"\r\x1b[K{'' if move['done'] else line + lag}", err=True, nl=False)
    elif stage != before:
        click.echo(f"krononat: {line}", err=True)
    return stage


def told(move: dict[str, Any]) -> str:
    """What a move has cost, in a line."""
    if move.get("copies"):
        return f"shard {move['shard']}: {move['sessions']:,} sessions copied to {move['target']} in {move['duration_ms']:,} ms"
    return (
        f"shard {move['shard']}: {move['sessions']:,} sessions from {move['source']} to {move['target']} in "
        f"{move['duration_ms']:,} ms; pause {move['pause_ms']} ms, {move['shunted']:,} packets shunted, {move['lost']:,} lost"
    )
