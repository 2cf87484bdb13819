"""`dreamdrop replay`: from a picture back to the request that drew it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from producer.commands.session import DEFAULT_STORE, AsJson, StoreUrl, Timeout, print_json, run, say, spoken


def replay(
    picture: Annotated[Path, typer.Argument(help="A picture that this project or A1111's web UI wrote.")],
    store: StoreUrl = DEFAULT_STORE,
    submit: Annotated[bool, typer.Option("--submit", help="Draw it again, wait and save.")] = False,
    image: Annotated[
        Path | None, typer.Option(help="The picture it started from; recipes do not hold it.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="The mask it was drawn with.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="With --submit: where to save.")] = Path(),
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild the request that drew a picture: print it, or submit it again."""
    from producer.commands.submit import Errand, checked, pictures
    from producer.recipe import read_recipe

    with spoken(as_json=as_json):
        found = read_recipe(picture)
        document = found.manifest | pictures(image, mask)
        if image is not None:  # a picture brings its own size
            document = {k: v for k, v in document.items() if k not in ("width", "height")}
        for note in found.notes:
            if not (image and "image" in note):
                say(f"dreamdrop: {note}")
        if not submit:
            print_json(document)
            return
        body = checked(document)
    from producer.input_files import Item

    item = Item(str(picture), False, body, None)
    errand = Errand(store, [item], True, out, True, 16, timeout, as_json, flat=True)
    raise typer.Exit(run(errand.go(), as_json=as_json))
