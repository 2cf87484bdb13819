"""The root of the command line, `dreamdrop`: it registers every command.

Help must be fast, so nothing heavy is imported before a command runs. Commands of the other packages
(`worker`, ...) are found through the entry point group "dreamdrop.commands". A command whose libraries are
not installed stays in the list, and says what to install.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from infra.logs import log_lines
from producer.commands import clean, doctor, estimate, keys, look, mend, models, replay, serve, setup, submit
from producer.commands.session import WRONG, code_of, say, sentence_of
from schemas.errors import DreamError

GROUP = "dreamdrop.commands"
EXTRAS = {
    "worker": "consumer",
    "bench": "consumer",
    "train": "training",
    "trainer": "training",
    "serve": "web",
    "up": "web,consumer",
}  # what to install for a command

PLAIN = {
    **dict.fromkeys(("<str>", "<list[str]>"), "TEXT"),
    **dict.fromkeys(("<int>", "<int range>"), "N"),
    **dict.fromkeys(("<float>", "<float range>"), "NUMBER"),
    "<path>": "PATH",
}  # kinds of values, as help names them

app = typer.Typer(
    name="dreamdrop",
    help="Drop a request, collect a picture.",
    epilog="Exit codes: 0 success; 1 a request did not succeed; 2 wrong input, nothing was sent; "
    "3 the store or queue cannot be used; 4 not finished in time.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help texts hold brackets, and plain help is twice as fast
)
app.command(context_settings=serve.PASSED_ON)(serve.up)
app.command()(submit.imagine)
app.command()(submit.submit)
app.command()(estimate.estimate)
app.command()(look.status)
app.command()(look.watch)
app.command()(look.fetch)
app.command()(look.cancel)
app.command()(mend.retry)
app.command()(serve.serve)
app.command()(doctor.doctor)
app.command()(replay.replay)
app.command()(clean.clean)
app.add_typer(mend.dead_letters, name="dead-letters")
app.add_typer(models.app, name="models")
app.add_typer(setup.app, name="setup")
app.add_typer(keys.keys, name="keys")


class PlainCommand(TyperCommand):
    """A command whose help says what kind of value is wanted in words of users, not in those of Python."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for param in self.params:
            if isinstance(param, (TyperArgument, TyperOption)):
                named = isinstance(param, TyperArgument)  # an argument's own name says it
                param.display_type = partial(_plain, param.display_type, named)  # type: ignore[method-assign]


def _plain(kind_of: Callable[[Any], str], named: bool, context: Any) -> str:
    kind = kind_of(context)
    return "" if named else PLAIN.get(kind, kind)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("dreamdrop"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Drop a request, collect a picture."""


def mount(root: typer.Typer, entry: EntryPoint) -> None:
    """Add another package's command, or one that says what is missing."""
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        command = _not_installed(entry.name, error.name)
    if not isinstance(command, typer.Typer):
        root.command(entry.name)(command)
        return
    alone, commands = command.registered_callback, command.registered_commands
    if alone is not None and alone.callback is not None and not commands:
        root.command(entry.name)(alone.callback)  # a command, not a group of one
    elif alone is None and len(commands) == 1 and commands[0].callback is not None:
        root.command(entry.name)(commands[0].callback)
    else:
        root.add_typer(command, name=entry.name)


def _not_installed(name: str, missing: str | None) -> Any:
    def command() -> None:
        _say_what_is_missing(name, missing)
        raise typer.Exit(WRONG)

    command.__doc__ = f"(needs {missing}, which is not installed)"
    return command


def _say_what_is_missing(name: str, missing: str | None) -> None:
    extra = EXTRAS.get(name, "consumer")
    say(
        f"dreamdrop: `{name}` needs {missing}, which is not installed: in Dreamdrop's folder, "
        f"pip install -c constraints.txt -e '.[{extra}]'"
    )


@cache
def mount_all() -> None:
    """Add the commands of all packages that are installed."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        mount(app, entry)
    for group in (app, *(info.typer_instance for info in app.registered_groups)):
        for command in group.registered_commands if group else ():
            command.cls = PlainCommand


def main() -> None:
    """The console script."""
    if not logging.getLogger().handlers:
        log_lines("warning", "producer", "infra", "consumer")
    mount_all()
    try:
        app(prog_name="dreamdrop")
    except DreamError as error:
        say(f"dreamdrop: {error}")
        raise SystemExit(code_of(error)) from None
    except OSError as error:
        say(f"dreamdrop: {sentence_of(error)}")
        raise SystemExit(WRONG) from None
    except ModuleNotFoundError as error:
        name = next((word for word in sys.argv[1:] if not word.startswith("-")), "this command")
        if (error.name or "").partition(".")[0] in {"producer", "consumer", "training", "infra", "schemas"}:
            raise
        _say_what_is_missing(name, error.name)
        raise SystemExit(WRONG) from None


if __name__ == "__main__":
    main()
