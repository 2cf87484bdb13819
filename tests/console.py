"""The console blocks of a documentation page as commands, and terminals that run them.

A block of a page is a list of commands:

- a line that begins with "$ " is a command; the lines below it up to the next one are what it prints;
- a command whose comment has "until Ctrl-C" runs beside the others until the terminals are closed;
- a block that begins with "# needs ..." needs more than a clone and Python.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 120.0  # seconds for a command, or for what one that stays is waited for
STAYS = "until Ctrl-C"
UP = re.compile(r"drop \.json|ready: http|\d+ queued, ")  # of a worker, a server, `watch`: it can be used now


@dataclass(frozen=True)
class Command:
    text: str
    output: str = ""  # what the page says it prints

    @property
    def stays(self) -> bool:
        return STAYS in self.text

    @property
    def changes_the_shell(self) -> bool:
        return self.text.startswith((". ", "export ", "cd "))


@dataclass(frozen=True)
class Block:
    kind: str  # "console" or "python"
    text: str

    @property
    def needs(self) -> str:
        """What a clone and Python have not."""
        found = re.match(r"# needs (.*)", self.text)
        return found[1] if found else ""

    @property
    def commands(self) -> list[Command]:
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        return [Command(*_divided(part)) for part in parts]


def _divided(part: str) -> tuple[str, str]:
    found = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", part, re.DOTALL)
    assert found
    return found[1], found[2]


def blocks(page: Path) -> list[Block]:
    """A page's console and Python blocks, in order."""
    found = re.findall(r"^```(console|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(kind, text) for kind, text in found]


@dataclass
class Staying:
    """A command that runs in a terminal of its own."""

    command: Command
    process: subprocess.Popen[bytes]
    terminal: int
    _shown: bytes = b""

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is closed
            while more := os.read(self.terminal, 65536):
                self._shown += more

    @property
    def shown(self) -> str:
        """What is on its screen and above, without colours."""
        return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", self._shown.decode(errors="replace")).replace("\r", "")


@dataclass
class Terminals:
    """Shells in one folder. What changes a shell is said again in each of them, as the page tells people to."""

    folder: Path
    environment: dict[str, str]
    _said: list[str] = field(default_factory=list)
    _staying: list[Staying] = field(default_factory=list)

    def run(self, command: Command, text: str = "") -> None:
        """Run a command as it stands (or `text` for it) and compare what it prints with the page."""
        text = text or command.text
        if command.changes_the_shell:
            self._said.append(text)
        elif command.stays:
            self._start(command, text)
            return
        ends = time.monotonic() + PATIENCE
        while True:
            done = subprocess.run(
                self._shell(text),
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                stdin=subprocess.DEVNULL,
            )
            if not command.output or done.stdout.split() == command.output.split():
                break
            assert time.monotonic() < ends, f"$ {text}\n{done.stdout}{done.stderr}{self.logs()}"
            time.sleep(0.2)  # the page says that it takes some seconds
        assert done.returncode == 0, f"$ {text}\n{done.stdout}{done.stderr}{self.logs()}"

    def _start(self, command: Command, text: str) -> None:
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            self._shell(text),
            cwd=self.folder,
            env=self.environment | {"TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        staying = Staying(command, process, ours)
        self._staying.append(staying)
        ends = time.monotonic() + PATIENCE
        while not UP.search(staying.shown):
            goes_on = process.poll() is None and time.monotonic() < ends
            assert goes_on, f"$ {text}\n{staying.shown}"
            time.sleep(0.1)

    def _shell(self, text: str) -> list[str]:
        return ["bash", "-c", "\n".join([*self._said, text])]

    def logs(self) -> str:
        """What the commands that stay have shown."""
        return "".join(f"\n$ {one.command.text}\n{one.shown}" for one in self._staying)

    def close(self) -> dict[str, int]:
        """Ctrl-C in each terminal; returns the exit code of each command that stayed."""
        for one in self._staying:
            if one.process.poll() is None:
                os.killpg(one.process.pid, signal.SIGINT)
        ends = {}
        for one in self._staying:
            try:
                ends[one.command.text] = one.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(one.process.pid, signal.SIGKILL)
                ends[one.command.text] = one.process.wait()
            os.close(one.terminal)
        return ends
