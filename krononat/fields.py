"""What the models say about the field at a path: its type, whether it must be there, what it is for, what a near miss means."""

from __future__ import annotations

import types
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from krononat.locate import Path, closest
from krononat.model import key_of
from krononat.models import Config


class Field(NamedTuple):
    """A field of a model, or an entry of a list (which must be there, as what it is stands in it)."""

    annotation: Any
    told: str
    required: bool


def field_at(path: Path) -> Field | None:
    """Field at `path`; None where there is none."""
    found: Field | None = Field(Config, Config.__doc__ or "", True)
    for part in path:
        found = found and (_entry(found) if isinstance(part, int) else _member(found, part))
    return found


def _entry(of: Field) -> Field:
    parts = get_args(of.annotation)
    lists = [part for part in parts if get_origin(part) is list]  # of list[X] | None
    return Field(next(iter(get_args(lists[0]) if lists else parts), None), of.told, True)


def _member(of: Field, key: str) -> Field | None:
    model = model_of(of.annotation)
    fields = model.model_fields.items() if model else ()
    field = next((field for name, field in fields if key_of(name) == key), None)
    return field and Field(field.annotation, field.description or "", field.is_required())


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The model an annotation is about: itself, of X | None, of list[X]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, Union, types.UnionType):
        return next(filter(None, (model_of(part) for part in get_args(annotation))), None)
    return None


def keys_at(path: Path) -> list[str]:
    """Keys that the table at `path` may have."""
    field = field_at(path)
    model = model_of(field.annotation) if field else None
    return [key_of(name) for name in model.model_fields] if model else []


def describe(path: Path) -> str:
    """What the field at `path` is for; empty where there is no such field."""
    field = field_at(path)
    return field.told if field else ""


def choices_at(path: Path) -> tuple[Any, ...]:
    """Words that the field at `path` may be."""
    field = field_at(path)
    return get_args(field.annotation) if field else ()


def meant(path: Path) -> str:
    """Key that was likely meant by the unknown one at `path`; empty where none is near."""
    key, known = str(path[-1]), keys_at(path[:-1])
    return closest(key, known) or closest(key.replace("_", "-"), known)
