"""What every table of a configuration has in common; the tables are in `models` and `models_bgp`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


def key_of(name: str) -> str:
    """What a field is called in a file: with hyphens; a trailing underscore keeps a word from being Python's own."""
    return name.rstrip("_").replace("_", "-")


class Model(BaseModel):
    """What all parts have in common: unknown keys are refused, no type is bent into another, keys are written with hyphens."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=key_of, populate_by_name=True)
