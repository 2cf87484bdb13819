"""The client's commands. Their modules import typer and the standard library only, so that help is fast."""
