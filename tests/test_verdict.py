"""Verdicts: one picture, from which numbers, names, fates and sentences follow."""

from __future__ import annotations

import re
from pathlib import Path

from shards import verdict
from shards.state import COUNTERS
from shards.verdict import BY_NAME, CONTROL, DROP, FORWARD, HOLD, METER_NAMES, METERS, PUNT, SHUNT, VERDICTS

# Set by nobody in `shards`: the kernel counts what it was given, and shunting belongs to clusters of cores.
SET_ELSEWHERE = {"punted", "shunted"}


def test_each_constant_is_the_number_of_its_name() -> None:
    for told in VERDICTS:
        constant = "HELD_BACK" if told.name == "held" else told.name.upper()
        assert getattr(verdict, constant) == told.number, told


def test_numbers_count_up_and_names_are_unique() -> None:
    assert [told.number for told in VERDICTS] == list(range(len(VERDICTS)))
    assert len(BY_NAME) == len(VERDICTS)


def test_every_fate_is_a_fate() -> None:
    assert {told.fate for told in VERDICTS} == {FORWARD, PUNT, SHUNT, HOLD, CONTROL, DROP}


def test_every_verdict_has_a_sentence_and_every_drop_a_remedy() -> None:
    assert all(told.sentence for told in VERDICTS)
    assert [told.name for told in VERDICTS if told.fate == DROP and not told.remedy] == []
    assert [told.name for told in VERDICTS if told.fate != DROP and told.remedy] == []


def test_names_are_words_for_labels() -> None:
    names = [*BY_NAME, *METER_NAMES]
    assert [name for name in names if not re.fullmatch(r"[a-z][a-z0-9_]*", name)] == []


def test_meters_stand_behind_the_verdicts_and_inside_the_counters() -> None:
    assert len(VERDICTS) <= METERS
    assert METERS + len(METER_NAMES) <= COUNTERS
    assert [getattr(verdict, name.upper()) for name in METER_NAMES] == list(range(METERS, METERS + len(METER_NAMES)))


def test_drops_are_one_run_of_numbers() -> None:
    """The pipeline asks `verdict >= FIRST_DROP`."""
    numbers = [told.number for told in VERDICTS if told.fate == DROP]
    assert numbers == list(range(numbers[0], len(VERDICTS)))


def test_every_drop_is_set_somewhere() -> None:
    folder = Path(verdict.__file__).parent
    source = "".join(path.read_text() for path in folder.glob("*.py") if path.name != "verdict.py")
    unused = [told.name for told in VERDICTS[1:] if told.name != "held" and not re.search(rf"\b{told.name.upper()}\b", source)]
    assert set(unused) <= SET_ELSEWHERE
