"""What `make interop` needs: the clients' environment, servers, and the table of figures at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.interop.clients import Clients
from tests.interop.servers import Server, moto, seaweed

FIGURES = pytest.StashKey[list[tuple[str, ...]]]()
HEAD = ("what", "by", "on", "figure")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures as a Markdown table, to be put into docs/reliability.md."""
    rows = terminalreporter.config.stash[FIGURES]
    if rows:
        terminalreporter.section("figures")
        for row in (HEAD, ("---",) * len(HEAD), *rows):
            terminalreporter.line(f"| {' | '.join(row)} |")


class Figures:
    """Takes down one row of the table."""

    def __init__(self, rows: list[tuple[str, ...]]) -> None:
        self._rows = rows

    def __call__(self, what: str, by: str, on: str, figure: str) -> None:
        self._rows.append((what, by, on, figure))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    return Figures(request.config.stash[FIGURES])


@pytest.fixture(scope="session")
def clients() -> Clients:
    """The environment that `make interop` fills."""
    return Clients(Path(os.environ["INTEROP"]).absolute())


@pytest.fixture(scope="session", params=["moto", "seaweed"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, clients: Clients
) -> Iterator[Server]:
    """An S3 server that others wrote, each in turn."""
    folder = tmp_path_factory.mktemp(request.param)
    running: AbstractContextManager[Server] = (
        moto(folder) if request.param == "moto" else seaweed(folder, clients.home)
    )
    with running as found:
        yield found


def needs(clients: Clients, name: str) -> None:
    """Skip a test for a client that is not installed: `make interop` installs Debian's packages as root only."""
    program = {"s3fs-fuse": "s3fs", "aws sync": "aws"}.get(name, name)
    if program in ("boto3", "smart_open", "mv") or name == "s3fs":
        return
    try:
        clients[program]
    except KeyError:
        pytest.skip(f"{program} is not installed")
    if name == "s3fs-fuse" and (os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK)):
        pytest.skip("only root can mount a bucket here")
