"""What an operator says of a model beside its source: `--models name=folder,steps=9,cfg=0`."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from schemas import samplers
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

#: A folder that is named as a source may have commas; one that is named as an option has none.
_OPTION = re.compile(r"(.*),\s*(?:(?P<name>[a-z_]+)=(?P<value>[^,/]*)|configs=(?P<folder>[^,]*))", re.DOTALL)
_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?", re.ASCII)


def split(text: str) -> tuple[str, dict[str, Any]]:
    """A model's source, and the fields of its card that the options behind it set.

    Commas of a folder's name stay in it.

    Raises:
        Rejected: an option is not known, given twice or has a wrong value.
    """
    source, seen = text, set[str]()
    fields: dict[str, Any] = {}
    while (found := _OPTION.fullmatch(source)) is not None:
        source, option = found[1], found["name"] or "configs"
        value = (found["folder"] if found["value"] is None else found["value"]).strip()
        if option not in _READERS:
            raise _wrong(f"{option!r} is no option; known are {', '.join(_READERS)}")
        if option in seen:
            raise _wrong(f"{option} is given twice")
        seen.add(option)
        try:
            fields |= _READERS[option](value)
        except ValueError as error:
            raise _wrong(f"{option} is {value!r}; it should be {error}") from error
    return source.strip(), fields


def _configs(value: str) -> dict[str, Any]:
    if not value:
        raise ValueError("a diffusers folder, or the name of a model")
    return {"configs": value}


def _steps(value: str) -> dict[str, Any]:
    return {"steps": _whole(value, "a whole number, 1 or more")}


def _multiple(value: str) -> dict[str, Any]:
    number = _whole(value, text := "a multiple of 8 pixels")
    if number % 8:
        raise ValueError(text)
    return {"size_multiple": number}


def _whole(value: str, text: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value)):
        raise ValueError(text)
    return int(value)


def _cfg(value: str) -> dict[str, Any]:
    text = "a number, 0 or more; 1 or below is without guidance"
    try:
        number = float(value)
    except ValueError:
        raise ValueError(text) from None
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(text)
    return {"cfg_scale": number}


def _scheduler(value: str) -> dict[str, Any]:
    try:
        return {"scheduler": samplers.resolve(value).name}
    except Rejected as error:
        raise ValueError(f"a scheduler's name ({error.message})") from error


def _size(value: str) -> dict[str, Any]:
    found = _SIZE.fullmatch(value.lower().replace("×", "x"))
    sides = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not all(side >= 8 and side % 8 == 0 for side in sides):
        raise ValueError("pixels in multiples of 8, such as 512 or 512x768")
    return {"native_width": sides[0], "native_height": sides[1]}


def _wrong(text: str) -> Rejected:
    return Rejected("invalid_manifest", text, field="model")


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "steps": _steps,
    "cfg": _cfg,
    "scheduler": _scheduler,
    "size": _size,
    "multiple": _multiple,
    "configs": _configs,
}
