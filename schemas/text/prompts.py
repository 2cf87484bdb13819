"""Prompt syntax of other programs that is drawn as plain words here: found, so that the result can say so.

A1111's web UI reads weights, scheduling and tags out of a prompt; InvokeAI and prompt generators have marks of their
own. Nothing here acts on them. Parentheses, a ratio and a colon are ordinary text.

Source: stable-diffusion-webui, `modules/prompt_parser.py` and `modules/extra_networks.py`.
"""

from __future__ import annotations

import re

#: What is found, with an example. Each pattern is searched in linear time: none can begin a long match twice.
_SYNTAX = (
    (re.compile(r"[^\d\s(:]\s?:\s?[-+]?(?:\d+[.,]?\d*|[.,]\d+)\s?\)"), "weights such as (word:1.2)"),
    (re.compile(r"\(\([^()]*\)\)"), "weights such as ((word))"),
    (re.compile(r"(?:\w\w|\))(?:\+\+|--)(?![\w+-])"), "weights such as word++"),
    (re.compile(r"\[[^\[\]|]+\|[^\[\]]*\]"), "alternation such as [a|b]"),
    (re.compile(r"\[[^\[\]]*:\s?(?:\d+\.?\d*|\.\d+)\s?\]"), "prompt editing such as [a:b:0.5]"),
    (re.compile(r"\[[^\[\]|:]*\w[^\[\]|:]*\]"), "weights such as [word]"),
    (re.compile(r"\{[^{}|]*\|[^{}]*\}|__[\w-]+__"), "wildcards such as {a|b} or __name__"),
    (re.compile(r"<[a-zA-Z]+:[^<>]*>"), "tags such as <lora:name:1> (send `loras` instead)"),
)  # fmt: skip
_KEYWORDS = re.compile(r"\b(BREAK|AND|ADDCOMM|ADDBASE|ADDROW|ADDCOL)\b")
_ESCAPED = re.compile(r"\\[()\[\]{}]")


def foreign_syntax(text: str) -> list[str]:
    """The kinds of foreign syntax in a prompt, each with an example; [] for plain words."""
    bare = _ESCAPED.sub(" ", text)
    found = [what for pattern, what in _SYNTAX if pattern.search(bare)]
    if bare != text:
        found.append(r"escapes such as \(")
    if text != text.upper():  # in "R AND D" all is in capitals
        found += [f"the keyword {word}" for word in dict.fromkeys(_KEYWORDS.findall(text))]
    return found
