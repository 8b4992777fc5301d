"""`krononat lab scenario`: a scenario file over AF_XDP, step by step.

What is played is held against the model of the tests, which is a second opinion and no part of the program: so this works where
the sources are, and says so where they are not.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krononat.cli.output import output_option, print_json
from krononat.client import Trouble
from krononat.lab import namespaces

if TYPE_CHECKING:
    from tests.wired import WiredRunner


@click.command(epilog="Example: krononat lab scenario tests/scenarios/rfc5382-req2-5-three-way-handshake.nat")
@output_option()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def scenario(file: Path, form: str) -> None:
    """Play FILE to a core of its own over AF_XDP, the clock moved as it says; exit status 1 where something else came out.

    Each step is shown with what became of it; core, model and file must agree. In namespaces of its own, beside any laboratory.
    """
    steps, wrong = _played(file)
    if form == "json":
        print_json({"file": str(file), "held": not wrong, "why": wrong, "steps": steps})
    else:
        for step in steps:
            click.echo(f"{step['line']:4}  {step['step']}" + (f"\n      → {step['came']}" if step["came"] else ""))
        click.echo(wrong or f"{file.stem}: {len(steps)} steps, as the file and the model say", err=bool(wrong))
    sys.exit(bool(wrong))


def _played(file: Path) -> tuple[list[dict[str, Any]], str]:
    """Steps with what came of them, and what is wrong with the last of them, if anything."""
    try:
        from tests import scenario as files
        from tests import wired, wired_config
    except ImportError as missing:
        raise _no_player(missing.name or str(missing)) from None
    try:
        scenario = files.parse(file)
        reason = wired_config.why_not(scenario) if scenario.steps else "it has no steps"
    except (ValueError, LookupError) as error:
        raise Trouble(f"{file} is no scenario that could be played", str(error)) from None
    if reason:
        raise Trouble(f"{file.stem} cannot be played to one core over AF_XDP", reason)
    namespaces.need("ip", "ethtool", "nft")
    with wired.stage(f"krns{os.getpid()}-", [file]) as stage:
        return _step_by_step(stage.begin(file))


def _no_player(missing: str) -> Trouble:
    """What to say where the sources are not, or what only they need is not installed."""
    why, then = f"their player needs {missing}, which is not installed", "./setup.sh in a clone installs what tests need"
    if missing.partition(".")[0] == "tests":
        why = "their model and their player are in the folder `tests` of the sources, and this is an installation"
        then = "run it in a clone, which has the scenarios, too: PYTHONPATH=. krononat lab scenario FILE"
    return Trouble("scenarios cannot be played here", why, then)


def _step_by_step(runner: WiredRunner) -> tuple[list[dict[str, Any]], str]:
    told: list[dict[str, Any]] = []
    try:
        for step in runner.scenario.steps:
            text = " ".join(runner.scenario.lines[step.line].partition("→")[0].split())
            told.append({"line": step.line + 1, "step": text, "came": ""})
            runner.take(step, False)
            told[-1]["came"] = runner.happened
        runner.check()
    except AssertionError as wrong:
        return told, str(wrong)
    return told, ""
