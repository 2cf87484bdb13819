"""Refusals in the words of the caller: the fields of a manifest under the names that another program gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from schemas.result import Note


def in_their_words(field: str | None, message: str, names: Mapping[str, str]) -> tuple[str | None, str]:
    """The field and the message of a refusal, renamed.

    Args:
        field: of a manifest, dotted.
        names: a manifest's fields to the caller's.
    """
    if not field:
        return field, message
    top = field.partition(".")[0]
    theirs = names.get(field) or names.get(top)
    if theirs is None:
        return field, _renamed(message, names)
    renamed = _renamed(message, names)
    if top != field and renamed == message:  # a part of a field that has no such parts in the caller's body
        renamed = f"{theirs}: {message}"
    return theirs, renamed


def notes_in_their_words(notes: Iterable[Note], names: Mapping[str, str]) -> list[Note]:
    """A result's notes, renamed."""
    renamed = [(note, *in_their_words(note.field, note.message, names)) for note in notes]
    return [note.model_copy(update={"field": field, "message": text}) for note, field, text in renamed]


def _renamed(message: str, names: Mapping[str, str]) -> str:
    """A message is a list of faults, each with its field first: "steps is 0; ...; also: width is 7; ..."."""
    pattern = re.compile(
        rf"(^|also: |; )({'|'.join(map(re.escape, names))})(?=:| (?:is|was|has|should|names|refers|cannot|x)\b)"
    )
    return pattern.sub(lambda found: found[1] + names[found[2]], message)
