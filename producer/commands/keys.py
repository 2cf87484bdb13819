"""`dreamdrop keys` makes API keys for the facade."""

from __future__ import annotations

from typing import Annotated

import typer

from producer.commands.session import AsJson, print_json, reporting_errors, say

keys = typer.Typer(help="Make API keys for `serve`.", no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """Make API keys for `serve`."""


@keys.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Who will use the key.")],
    prefix: Annotated[
        str, typer.Option(help="Ids of this key begin with it and a dot; the key sees no others.")
    ] = "",
    room: Annotated[
        int, typer.Option(min=0, help="Synchronous requests at the same time; 0 for no limit.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Make an API key.

    The key is shown once. The settings keep only its hash.
    """
    from producer.web.api_keys import new_key

    with reporting_errors(as_json=as_json):
        key, line = new_key(name, prefix=prefix, room=room)
    if as_json:
        print_json({"key": key, "setting": line})
        return
    typer.echo(key)
    say(
        f"\nGive the key above to {name}; it is not shown again. Add this to DREAMDROP_API_KEYS, in quotes:\n{line}"
    )
