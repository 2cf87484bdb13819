"""Prints `.env.example`: every variable of every command, from the commands' own options.

python -m tests.deploy.env_example > .env.example
"""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import typer
from typer.core import TyperOption

from producer.cli import GROUP, app
from tests.deploy.dockerfile import ROOT

COMPOSE = """\
# Settings of compose.yaml and of every command: copy this file to .env. A line without # is in force; of the others
# the value is the default. compose.yaml itself sets DREAMDROP_STORE, DREAMDROP_QUEUE, the web server's DREAMDROP_PORT,
# and the AWS_ variables.
# `python -m tests.deploy.env_example > .env.example` writes this file.

# ---- compose.yaml ----
# Who draws: cpu, or gpu (needs the NVIDIA container toolkit). With a trainer: cpu,train-cpu or gpu,train-gpu
COMPOSE_PROFILES=cpu
# What the image is built on. With a GPU: nvidia/cuda:12.8.1-base-ubuntu24.04
BASE_IMAGE=debian:bookworm-slim
# The model in the image: doodle, sd21, sd15, sdxl or none. With a GPU: sd21
MODEL=doodle
# URL of a Python index with another build of torch than the default one, such as a CPU build, which is much smaller.
# TORCH_INDEX=
# The image's name.
# DREAMDROP_IMAGE=dreamdrop
# Where the web server is published. Set DREAMDROP_API_KEYS before other machines can reach it.
# WEB_ADDRESS=127.0.0.1:8000
# The port of the store and the queue on this machine.
# STORE_PORT=4566
"""

#: Read from the environment only: secrets, which other users could see on a command line, and folders.
ALONE = {
    "DREAMDROP_API_KEYS": "Web server: keys of its callers, separated by spaces; `dreamdrop keys new NAME` makes one.",
    "DREAMDROP_EVENTS_TOKEN": "Web server: tokens with which object stores may post events to /events.",
    "DREAMDROP_WEBHOOK_SECRET": "Worker: secrets that sign the announcements to webhooks.",
    "DREAMDROP_WEBHOOK_HOSTS": "Worker: hosts that the webhooks of --announce may lead to.",
    "DREAMDROP_METRICS_PORT": "The port on which a worker answers /metrics, /healthz and /readyz.",
    "DREAMDROP_MODEL_CACHE": "The folder for published models; default ~/.cache/dreamdrop/models.",
    "DREAMDROP_BAKED_MODELS": "A folder of models, laid out as the hub's cache and only read; the image sets /models.",
}


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its path; "" is `dreamdrop` itself.

    The other packages' commands are those of pyproject.toml: an environment may have an older installation.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    mounted = project["entry-points"][GROUP].items()
    loaded = [(name, EntryPoint(name, value, GROUP).load()) for name, value in mounted]
    todo: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    todo += [(name, typer.main.get_command(command)) for name, command in loaded]
    seen: set[str] = set()  # in a process that has run the command line, `app` has all commands
    while todo:
        path, command = todo.pop(0)
        if path in seen:
            continue
        seen.add(path)
        yield path, command
        todo += [(f"{path} {name}".strip(), one) for name, one in getattr(command, "commands", {}).items()]


def options() -> Iterator[tuple[str, TyperOption]]:
    """Every option that has a variable, with the path of its command."""
    for path, command in commands():
        for param in command.params:
            if isinstance(param, TyperOption) and param.envvar:
                yield path or "dreamdrop", param


def variables() -> dict[str, tuple[list[str], TyperOption]]:
    """Each variable: the commands that read it, and its option."""
    found: dict[str, tuple[list[str], TyperOption]] = {}
    for path, option in options():
        for name in [option.envvar] if isinstance(option.envvar, str) else option.envvar or ():
            commands, _ = found.setdefault(name, ([], option))
            if path not in commands:
                commands.append(path)
    return dict(sorted(found.items()))


def default(option: TyperOption) -> str:
    value = option.default
    if value is None or callable(value):
        return ""
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def text() -> str:
    """The whole file."""
    lines = [COMPOSE, "# ---- From the environment only ----"]
    for name in sorted(ALONE.keys() - variables().keys()):
        lines += [*_comment(ALONE[name]), f"# {name}="]
    lines.append("\n# ---- Options of the commands ----")
    for name, (commands, option) in variables().items():
        readers = ", ".join(commands) if len(commands) < 6 else "every command that uses a store"
        lines += [*_comment(f"{option.help} ({readers})"), f"# {name}={default(option)}"]
    return "\n".join(lines) + "\n"


def _comment(sentence: str) -> list[str]:
    return textwrap.wrap(
        sentence,
        118,
        initial_indent="# ",
        subsequent_indent="# ",
        break_on_hyphens=False,
        break_long_words=False,
    )


if __name__ == "__main__":
    print(text(), end="")
