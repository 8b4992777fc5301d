"""The demonstration that ./run.sh runs: claims in order, each shown by the packets themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from krononat.client import Trouble
from krononat.lab import conservation, crash, namespaces, traffic
from krononat.lab.laboratory import Lab, laboratory, tail
from krononat.lab.report import Report
from krononat.lab.traffic import Outcome

# What an operator would type to see what was going on; printed, and kept in the report.
TABLES = (
    ("sessions", ("sessions", "list", "--limit", "12")),
    ("pools", ("pool", "list")),
    ("drops", ("drops",)),
)


def run(name: str, folder: Path) -> bool:
    """Build, try, take down, report; whether everything held."""
    console = Console(highlight=False)
    report = Report()
    steps = len(traffic.ALL) + 5
    with _progress(console) as progress:
        task = progress.add_task("laboratory", total=steps)

        def tell(told: str) -> None:
            progress.update(task, description=told)

        def claim(name: str, try_it: Callable[[], Outcome]) -> None:
            tell(name)
            outcome = report.add(try_it)
            mark = "[green]held  [/]" if outcome.held else "[bold red]FAILED[/]"
            console.print(f"{mark} [bold]{outcome.name}[/]  {escape(outcome.told)}", soft_wrap=True)
            progress.advance(task)

        try:
            with laboratory(name, tell=tell) as lab:
                _all_claims(lab, claim, report, console)
        except Trouble as trouble:
            built = Outcome("laboratory", False, f"{trouble.what}: {trouble.why}", {})
            claim("laboratory", lambda: built)
        claim("cleaned", lambda: cleaned(name))
    report.write(folder)
    verdict = "[bold green]everything held[/]" if report.held else "[bold red]not everything held[/]"
    console.print(f"{verdict} in {report.seconds:.0f} s; {folder / 'report.md'}, {folder / 'report.json'}", soft_wrap=True)
    return report.held


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress


def _all_claims(lab: Lab, claim: Callable[[str, Callable[[], Outcome]], None], report: Report, console: Console) -> None:
    with conservation.watching(lab) as ledger:
        for name, make in traffic.ALL.items():
            claim(name, partial(make, lab))
        for title, words in TABLES:
            text = lab.krononat(*words).stdout
            report.table(title, words, text)
            console.print(f"\n[dim]$ krononat {' '.join(words)}[/]")
            console.print(escape(text), soft_wrap=True)
        claim("conservation", lambda: report.keep_books(ledger.close()))
        claim("kernel", lambda: kernel_forwarded_nothing(lab))
    claim("kill_worker", lambda: crash.kill_worker(lab))
    claim("after the crash", lambda: again(lab))
    if not report.held:
        report.log("appliance", tail(lab.log(f"appliance-{lab.first}"), 200))


def kernel_forwarded_nothing(lab: Lab) -> Outcome:
    """The kernel of `nat` has forwarded no packet: whatever passed, passed through the appliance."""
    count = namespaces.forwarded_by_kernel(lab.namespace["nat"])
    told = f"the kernel of the appliance's namespace has forwarded {count} packets"
    return Outcome("kernel", count == 0, told, {"forwarded": count})


def again(lab: Lab) -> Outcome:
    """What worked before the worker was killed works after it."""
    outcomes = [traffic.ping(lab), traffic.dns(lab), traffic.download(lab)]
    told = "; ".join(f"{outcome.name}: {outcome.told}" for outcome in outcomes)
    return Outcome("after_crash", all(outcome.held for outcome in outcomes), told, {})


def cleaned(name: str) -> Outcome:
    """Nothing of the laboratory is left."""
    left = sorted(each for each in namespaces.existing() if each.startswith(f"{name}-"))
    return Outcome("cleaned", not left, f"left behind: {left}" if left else "no namespace, process or file left behind", {})
