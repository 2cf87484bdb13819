"""Reads the Dockerfile: its stages, their instructions, and the variables that each one sees."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, such as `COPY`, with its arguments as written, on one line."""

    name: str
    text: str


@dataclass(slots=True)
class Stage:
    """One stage of a multi-stage build."""

    name: str
    base: str  # a stage's name or an image's
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, name: str) -> str:
        """The arguments of the last instruction of this name."""
        return [one.text for one in self.instructions if one.name == name][-1]

    def command(self, name: str) -> list[str]:
        """The words of an instruction in its JSON form: ENTRYPOINT, CMD, or HEALTHCHECK's command."""
        words: list[str] = json.loads(self.last(name)[self.last(name).index("[") :])
        return words


def read(path: Path = ROOT / "Dockerfile") -> tuple[dict[str, str], dict[str, Stage]]:
    """The arguments in front of the first stage, and the stages in order."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    for one in _instructions(path.read_text()):
        if one.name == "FROM":
            base, _, name = one.text.split()
            stages[name] = Stage(name, base)
        elif not stages:
            name, _, value = one.text.partition("=")
            arguments[name] = value
        else:
            list(stages.values())[-1].instructions.append(one)
    return arguments, stages


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield Instruction(name, rest.strip())


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`$NAME` and `${NAME}` replaced, as in COPY and ENV; unknown ones are empty."""
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def pairs(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """The `NAME=value` pairs of ENV and LABEL."""
    found = re.findall(r'([\w.]+)=("[^"]*"|\S*)', text)
    return {name: expanded(value.strip('"'), variables) for name, value in found}


def environment_of(stage: Stage, stages: Mapping[str, Stage], given: Mapping[str, str]) -> dict[str, str]:
    """What a process sees that is started from a stage: ENV of the stage and of its bases.

    Args:
        given: build arguments that replace the defaults.
    """
    base = stages.get(stage.base)
    environment = environment_of(base, stages, given) if base else {"PATH": DEFAULT_PATH}
    variables = dict(environment)
    for one in stage.instructions:
        if one.name == "ARG":
            name, _, default = one.text.partition("=")
            variables[name] = given.get(name, default.strip('"'))
        elif one.name == "ENV":
            environment |= pairs(one.text, variables)
            variables |= environment
    return environment


def workdir_of(stage: Stage | None, stages: Mapping[str, Stage]) -> str:
    """The working directory that a stage ends with."""
    if stage is None:
        return "/"
    own = [one.text for one in stage.instructions if one.name == "WORKDIR"]
    return own[-1] if own else workdir_of(stages.get(stage.base), stages)


def ignored_but(path: Path = ROOT / ".dockerignore") -> list[str]:
    """The names at the top that reach the build. The file must begin with `*`."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    if lines[0] != "*":
        raise ValueError(".dockerignore should leave out everything, and then name what is wanted")
    return [line[1:] for line in lines if line.startswith("!")]
