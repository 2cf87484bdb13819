"""`dreamdrop replay`: rebuilds a request from the picture that it drew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from producer.commands.session import (
    DEFAULT_STORE,
    AsJson,
    StoreUrl,
    Timeout,
    print_json,
    reporting_errors,
    run,
    say,
)


def replay(
    picture: Annotated[Path, typer.Argument(help="A picture that Dreamdrop or A1111's web UI wrote.")],
    store: StoreUrl = DEFAULT_STORE,
    submit: Annotated[
        bool, typer.Option("--submit", help="Draw the picture again, wait for it and save it.")
    ] = False,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="The picture that it started from, or each in its order; a recipe does not hold them.",
        ),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="The mask that it was drawn with.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="With --submit: the folder to save in.")] = Path(),
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild the request that drew a picture.

    Prints the request, or with --submit draws it again.
    """
    from producer.bulk import pictures
    from producer.commands.submit import Submission, checked
    from producer.recipe import read_recipe

    with reporting_errors(as_json=as_json):
        recipe = read_recipe(picture)
        document = recipe.manifest | pictures(image or [], mask)
        if image:  # the size is that of the image
            document = {k: v for k, v in document.items() if k not in ("width", "height")}
        for note in recipe.notes:
            if not (image and "image" in note):
                say(f"dreamdrop: {note}")
        if not submit:
            print_json(document)
            return
        body = checked(document)
    from producer.input_files import Item

    item = Item(str(picture), False, body, None)
    submission = Submission(store, [item], True, out, True, 16, timeout, as_json, flat=True)
    raise typer.Exit(run(submission.run(), as_json=as_json))
