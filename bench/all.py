"""`krononat bench all`: every bench in a fixed order, each in a process of its own, and a report of what they said.

`report/DATE-COMMIT/` gets `result.json` (all results and the environment of each bench: what `bench compare` reads), `env.json`
(the environments alone), `report.md` for people and an SVG for each bench. A bench that fails, or lacks something (root, DPDK,
a second core), is told with its reason, and the rest goes on; the exit status is 6 then, or 1 where none could be run.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import click

from bench import environment, report
from bench.report import Result, Told
from krononat.client import PARTIAL, Trouble

# The bare index first, then what is built upon it; kinds stand together: memory, memif, veth.
ORDER = ("tables", "path", "connections", "memory", "scale", "replication", "memif", "wire", "start", "crash", "attack",
         "routes", "migrate", "failover", "verify")  # fmt: skip

_ROOT = Path(__file__).parent.parent
_REASON_LINES = 12  # of what a failed bench said last


class Outcome(NamedTuple):
    """What became of one bench: its results and their environment, or the reason why there are none."""

    bench: str
    results: list[Result]
    env: dict[str, Any]
    reason: str = ""


Perform = Callable[[str, bool, Told], Outcome]


def perform(name: str, quick: bool, told: Told) -> Outcome:
    """Run one bench in a process of its own, so that a crash or its memory is its own affair; its stderr says how far it is."""
    words = [sys.executable, "-m", "krononat", "bench", name, "-o", "json", *(["--quick"] if quick else [])]
    said: list[str] = []
    with TemporaryFile("w+") as out:
        # In a session of its own it gets one interrupt, from here, and can put back what it has taken.
        with subprocess.Popen(
            words, cwd=_ROOT, stdout=out, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                for line in process.stderr or ():
                    said.append(line.rstrip())
                    told(line.strip())
            except BaseException:
                process.send_signal(signal.SIGINT)
                process.wait()  # `with` would give it a quarter of a second
                raise
        out.seek(0)
        return _outcome(name, process.returncode, out.read(), [line for line in said if not line.startswith(f"{name}: ")])


def _outcome(name: str, status: int, out: str, said: Sequence[str]) -> Outcome:
    try:
        found = json.loads(out)
        return Outcome(name, [Result(**result) for result in found["results"]], found["env"])
    except ValueError:
        return Outcome(name, [], {}, _reason(said) or f"it ended with status {status} and said nothing")


def _reason(said: Sequence[str]) -> str:
    """The end of what was said; of a traceback, which stands indented, only the message."""
    if any(line.startswith("Traceback") for line in said):
        said = said[max(number for number, line in enumerate(said) if line.startswith("  ")) + 1 :]
    return "\n".join(said[-_REASON_LINES:])


@contextmanager
def progress(steps: int) -> Iterator[Callable[[int, str], None]]:
    """A bar of benches done, and what the present one says; plain lines where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, text: click.echo(f"{done}/{steps} {text}", err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("begins", total=steps)
        yield lambda done, text: bar.update(task, completed=done, description=text)


def collect(names: Sequence[str], quick: bool, run: Perform = perform) -> list[Outcome]:
    """What became of each bench, in their order."""
    outcomes = []
    with progress(len(names)) as bar:
        for done, name in enumerate(names):
            bar(done, name)
            outcomes.append(run(name, quick, partial(bar, done)))
    return outcomes


def write(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """The report: JSON for `compare`, Markdown and plots for people."""
    folder.mkdir(parents=True, exist_ok=True)
    commit = environment.commit()
    env = {
        "commit": commit,
        "benches": {outcome.bench: outcome.env for outcome in outcomes if not outcome.reason},
        "failed": {outcome.bench: outcome.reason for outcome in outcomes if outcome.reason},
    }
    results = [result for outcome in outcomes for result in outcome.results]
    (folder / "result.json").write_text(report.as_json(results, env) + "\n")
    (folder / "env.json").write_text(json.dumps(env, indent=2) + "\n")
    drawn = {outcome.bench: _drawn(folder, outcome) for outcome in outcomes if outcome.results}
    (folder / "report.md").write_text("\n\n".join(_sections(outcomes, commit, drawn)) + "\n")


def _drawn(folder: Path, outcome: Outcome) -> str:
    """Name of the bench's picture; "" where the library that draws it is missing: figures do not need it."""
    try:
        from bench import plots
    except ImportError as error:
        click.echo(f"no picture of {outcome.bench}: {error}; `pip install 'krononat[bench]'` brings what draws it", err=True)
        return ""
    plots.draw(outcome.results, f"bench {outcome.bench}, {report.title(outcome.env)}", folder / f"{outcome.bench}.svg")
    return f"{outcome.bench}.svg"


def _sections(outcomes: Sequence[Outcome], commit: str, drawn: dict[str, str]) -> Iterator[str]:
    yield f"# Benches of {commit}"
    yield "Figures of different kinds (memory, memif, veth) are never compared; docs/benches.md says what each shows."
    for outcome in outcomes:
        yield f"## {outcome.bench}"
        if outcome.reason:
            yield f"Not run:\n\n```\n{outcome.reason}\n```"
            continue
        yield report.title(outcome.env)
        yield _markdown(outcome.results)
        if drawn[outcome.bench]:
            yield f"![{outcome.bench}]({drawn[outcome.bench]})"


def _markdown(results: Sequence[Result]) -> str:
    head = f"| {' | '.join(report.COLUMNS)} |\n|---|{'--:|' * 3}---|--:|---|--:|"
    return "\n".join([head, *(f"| {' | '.join(report.cells(result))} |" for result in results)])


def status_of(outcomes: Sequence[Outcome], strict: bool) -> int:
    """Exit status: 0 all were run, 1 none (or a goal missed, if that is asked for), 6 some."""
    failed = sum(1 for outcome in outcomes if outcome.reason)
    if failed:
        return 1 if failed == len(outcomes) else PARTIAL
    missed = any(result.ok is False for outcome in outcomes for result in outcome.results)
    return 1 if strict and missed else 0


@click.command("all", epilog="Example: krononat bench all --quick")
@click.option("-o", "--output", "form", type=click.Choice(["json", "table"]), default="table", help="How to print.")
@click.option("--quick", is_flag=True, help="Each bench in under 50 s.")
@click.option("--strict", is_flag=True, help="Exit with 1 where a goal is missed.")
@click.option("--only", multiple=True, type=click.Choice(ORDER), help="Only this bench; may be given several times.")
@click.option("--report", "parent", type=click.Path(path_type=Path, file_okay=False), default=Path("report"), help="Where to.")
def everything(form: str, quick: bool, strict: bool, only: tuple[str, ...], parent: Path) -> None:
    """Run all benches in a fixed order and write a report with plots."""
    _expect_folder(parent)
    outcomes = collect([name for name in ORDER if name in (only or ORDER)], quick)
    folder = parent / f"{time.strftime('%Y-%m-%d-%H%M')}-{environment.commit()}"
    write(folder, outcomes)
    if form == "json":
        click.echo((folder / "result.json").read_text(), nl=False)
    else:
        show(outcomes)
    click.echo(f"report: {folder / 'report.md'}", err=True)
    sys.exit(status_of(outcomes, strict))


def _expect_folder(parent: Path) -> None:
    """Trouble where the report could not be written: better now than after an hour."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = str(error.strerror)
        raise Trouble(f"no report can be written to {parent}", why, "name another folder with --report") from error


def show(outcomes: Sequence[Outcome]) -> None:
    """For people: a table per bench, then what could not be run."""
    for outcome in outcomes:
        if not outcome.reason:
            report.show(outcome.results, outcome.env)
            click.echo()
    for outcome in outcomes:
        if outcome.reason:
            click.echo(f"{outcome.bench} was not run:\n{outcome.reason}", err=True)


if __name__ == "__main__":
    everything()
