"""Prompt weights as A1111's web UI writes them, and prompt syntax of other programs that is not drawn here.

    a (red:1.3) circle     "red" counts 1.3 times
    ((red)), [red]         each pair of brackets: 1.1 times, or 1 / 1.1
    a cat BREAK a house    the words behind it are read by themselves
    a cat \\(black\\)        brackets as they are

A prompt is read so if it has one of these marks; then single parentheses count 1.1 times as well. Without a mark,
parentheses, a ratio and a colon are ordinary text.

Source: stable-diffusion-webui, `modules/prompt_parser.py` and `modules/extra_networks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.errors import Rejected

Pieces = tuple[tuple[str, float], ...]  # words and their weight

_STEP = 1.1  # for each pair of brackets
_MOST = 10.0  # of a weight; community prompts stay below 2
#: A weight at the end of a group. Digits on both sides of the colon are a ratio, unless the second is a decimal.
_NUMBER = r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)"
_WEIGHT = rf"(?:(?<=[^\d\s(:]):|(?<=[^\d\s(:]\s):|:(?=\s?[-+]?\d*[.,]\d))\s?({_NUMBER})\s?\)"
_MARKS = (
    re.compile(_WEIGHT),
    re.compile(r"\(\([^()]*\)\)"),
    re.compile(r"\[[^\[\]|:]*\w[^\[\]|:]*\]"),
)
_ESCAPED = re.compile(r"\\[()\[\]{}]")
_TOKENS = re.compile(
    rf"(?P<escaped>\\[\\()\[\]{{}}])|(?P<weight>\s?{_WEIGHT})|(?P<bracket>[()\[\]])|(?P<word>\bBREAK\b)"
)
#: Each pattern is searched in linear time: none can begin a long match twice.
_REFUSED = (
    (re.compile(r"(?:\w\w|\))(?:\+\+|--)(?![\w+-])"), "weights such as word++ (write (word:1.2) instead)"),
    (re.compile(r"\[[^\[\]|]+\|[^\[\]]*\]"), "alternation such as [a|b]"),
    (re.compile(r"\[[^\[\]]*:\s?(?:\d+\.?\d*|\.\d+)\s?\]"), "prompt editing such as [a:b:0.5]"),
)  # fmt: skip
_KEYWORDS = re.compile(r"\b(AND|ADDCOMM|ADDBASE|ADDROW|ADDCOL)\b")
_BREAK = re.compile(r"\bBREAK\b")
_TOLD = (
    (re.compile(r"\{[^{}|]*\|[^{}]*\}|__[\w-]+__"), "wildcards such as {a|b} or __name__"),
    (re.compile(r"<[a-zA-Z]+:[^<>]*>"), "tags such as <lora:name:1> (send `loras` instead)"),
)
#: A group with a weight that another bracket, or the end, follows in place of its own.
_UNCLOSED = re.compile(rf"\((?=[^()]*(?:\(|\Z))[^()]*?[^\d\s(:]\s?:{_NUMBER}(?![^\s,])")


def has_marks(text: str) -> bool:
    """Whether a prompt is written with weights, `BREAK` or escaped brackets."""
    bare = _ESCAPED.sub(" ", text)
    return bare != text or any(mark.search(bare) for mark in _MARKS) or _has_keyword(_BREAK, text)


def parts(text: str, field: str = "prompt") -> tuple[Pieces, ...]:
    """A prompt with marks: its parts between `BREAK`s, each as words with weights; of a plain one its text.

    Raises:
        Rejected: a bracket without its other one, or a weight that is out of range.
    """
    if not has_marks(text):
        return (((text, 1.0),),)
    found: list[list[list[str | float]]] = [[]]  # by part: words and weight
    flat: list[list[str | float]] = []  # the same in one row, so that a group may have a BREAK inside
    opened: list[tuple[str, int]] = []  # the bracket, and where in `flat` its group begins
    for kind, token in _tokens(text):
        if kind in ("text", "escaped"):
            piece: list[str | float] = [token, 1.0]
            flat.append(piece)
            found[-1].append(piece)
        elif kind == "word":
            found.append([])
        elif kind == "bracket" and token in "([":
            opened.append((token, len(flat)))
        else:
            closes = "[" if token == "]" else "("
            if not opened or opened[-1][0] != closes:
                raise _refused(
                    field, f"has a {token[-1]} without its {closes}; write \\{token[-1]} for the character"
                )
            begins = opened.pop()[1]
            factor = 1 / _STEP if token == "]" else _STEP
            if kind == "weight":
                factor = float(token[:-1].replace(",", "."))
            for piece in flat[begins:]:
                piece[1] = float(piece[1]) * factor
        if len(opened) > 50:
            raise _refused(field, "has more than 50 brackets inside each other")
    if opened:
        raise _refused(
            field, f"has a {opened[-1][0]} that is not closed; write \\{opened[-1][0]} for the character"
        )
    whole = tuple(merged for part in found if (merged := _merged(part)))
    for _, weight in (piece for part in whole for piece in part):
        if not 0 <= weight <= _MOST:
            raise _refused(field, f"has a weight of {weight:.3g}; it should be from 0 to {_MOST:g}")
    return whole or ((("", 1.0),),)


def is_weighted(text: str) -> bool:
    """Whether a prompt with marks is more than words: it has a weight other than 1, or several parts."""
    read = parts(text)
    return len(read) > 1 or any(weight != 1 for _, weight in read[0])


def plain(text: str) -> str:
    """The words of a prompt with marks, without them."""
    return " ".join("".join(words for words, _ in part) for part in parts(text))


def with_weights(text: str) -> str:
    """A prompt of A1111's clients: there, parentheses are weights also without another mark."""

    def marked(group: re.Match[str]) -> str:
        return f"({group[1]}:{_STEP:g})" if re.search(r"\w", group[1]) else group[0]

    return text if has_marks(text) else re.sub(r"\(([^()]+)\)", marked, text)


def as_drawn(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The prompts of our own recipe that must be written otherwise to be drawn as they were.

    Workers before weights drew all marks as words; their recipes do not have `weights`.
    """
    if recipe.get("weights"):
        return {}
    prompts = {field: recipe.get(field) for field in ("prompt", "negative_prompt")}
    return {
        field: re.sub(r"([\\()\[\]])", r"\\\1", text)
        for field, text in prompts.items()
        if isinstance(text, str) and has_marks(text)
    }


def check_syntax(text: str, field: str) -> None:
    """Refuse syntax of other programs that would be drawn as words. Raises `Rejected`, which names it."""
    bare = _ESCAPED.sub(" ", text)
    found = [what for pattern, what in _REFUSED if pattern.search(bare)]
    found += [f"the keyword {word} (write it in small letters)" for word in _found(_KEYWORDS, text)]
    if found:
        brackets = r"; write \[ and \] for brackets that are to be drawn" if "[" in "".join(found) else ""
        raise _refused(field, f"has {', '.join(found)}: such prompts are not drawn here{brackets}")
    parts(text, field)


def foreign_syntax(text: str) -> list[str]:
    """The kinds of syntax in a prompt that are drawn as plain words, each with an example."""
    bare = _ESCAPED.sub(" ", text)
    found = [what for pattern, what in _TOLD if pattern.search(bare)]
    if _UNCLOSED.search(bare) and not has_marks(text):
        found.append("a weight without its ), such as (word:1.2")
    return found


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at, breaks = 0, _has_keyword(_BREAK, text)
    for match in _TOKENS.finditer(text):
        kind = match.lastgroup or ""
        if kind == "word" and not breaks:
            continue
        if match.start() > at:
            yield "text", text[at : match.start()]
        at = match.end()
        if kind == "escaped":
            yield kind, match[0][1:]
        elif match["weight"] is not None:
            yield "weight", match[3] + ")"
        else:
            yield kind, match[0]
    if at < len(text):
        yield "text", text[at:]


def _merged(part: list[list[str | float]]) -> Pieces:
    """Without empty words, neighbours of one weight together."""
    merged: list[tuple[str, float]] = []
    for words, weight in part:
        text, by = str(words), round(float(weight), 6)
        if merged and merged[-1][1] == by:
            merged[-1] = (merged[-1][0] + text, by)
        elif text:
            merged.append((text, by))
    return tuple(merged) if any(text.strip() for text, _ in merged) else ()


def _found(keywords: re.Pattern[str], text: str) -> list[str]:
    """Keywords of a prompt, each once; where all is in capitals, as in "R AND D", none is one."""
    return list(dict.fromkeys(keywords.findall(text))) if text != text.upper() else []


def _has_keyword(keyword: re.Pattern[str], text: str) -> bool:
    return bool(_found(keyword, text))


def _refused(field: str, text: str) -> Rejected:
    return Rejected.of_field(field, text, "unsupported")
