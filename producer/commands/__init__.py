"""The commands of `dreamdrop`: a module for each group of them.

`producer.cli` registers their functions; each runs its work through `session.run`, which turns an error into
one line and an exit code. They may import everything in `producer`, but at the top of a module only typer
and what loads nothing heavy, so that help is fast.
"""
