"""`python -P -m infra.models.download NAME`: downloads a registered model, for an image that brings it along.

It goes to the hub library's cache, or to DREAMDROP_BAKED_MODELS where that is set. The weights are checked as a
worker checks them, so a build does not end with an image whose worker refuses its model.
"""

from __future__ import annotations

import sys

from infra.models.cards import Cards
from infra.models.hub_caches import baked_cache
from infra.models.model_files import ModelFolder, find
from schemas.errors import DreamError

NONE = "none"


def download(name: str) -> ModelFolder | None:
    """Make a registered model available on this machine.

    Args:
        name: as `dreamdrop models` lists it; "none" does nothing. A bundled model is only checked.

    Raises:
        Rejected: no model has this name, or what was downloaded is not safe to load.
        ModelUnavailable: no source provides it.
    """
    if name == NONE:
        return None
    return find(Cards.of().get(name), offline=False, cache=next(iter(baked_cache()), None))


def main(arguments: list[str]) -> int:
    """Download, and print where the model lies. Returns the exit status: 0, 1 without the model, 2 for bad usage."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: python -P -m infra.models.download NAME   (NAME may be {NONE})", file=sys.stderr)
        return 2
    try:
        folder = download(arguments[0])
    except DreamError as error:
        print(f"the model cannot be downloaded: {error}", file=sys.stderr)
        return 1
    print(
        "no model is downloaded" if folder is None else f"{arguments[0]}: {folder.path}, from {folder.source}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
