"""Publishes the product of a training: its files, its model card, and pictures that it drew."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.models import published
from schemas.models import PublishedCard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from infra.stores.store import Store
    from training.lease.base_models import FetchedBase

_PICTURES = 4  # of the last validation, beside the card


async def publish(
    store: Store,
    folder: Path,
    facts: dict[str, Any],
    base: FetchedBase,
    *,
    training_id: str,
    confirm: Callable[[], Awaitable[None]],
) -> PublishedCard:
    """Publish `product/` of a work folder; a second try of the same training finds the version of the first.

    Args:
        facts: `product.json`.
        confirm: awaited just before the version can be seen; what it raises ends this without one.

    Raises:
        Rejected: the name cannot be used.
        Unavailable: the store or the disk is in trouble; call it again.
    """
    product = folder / "product"
    shown = await asyncio.to_thread(_add_pictures, folder, product)
    (product / "README.md").write_text(_readme(facts), encoding="utf-8")
    side = facts["resolution"]
    card = PublishedCard(
        name=facts["name"],
        version=1,  # filled in when it is published
        kind=facts["kind"],
        base=facts["base"]["name"],
        base_revision=base.revision,
        family=facts["family"],
        prediction_type=facts["prediction_type"],
        config_hash=facts["base"]["config_sha256"],
        licence=base.licence,  # inherited
        trigger_words=tuple(facts["trigger_words"]),
        weight=facts["weight"] if facts["weight"] is not None else 1.0,
        native_width=side,
        native_height=side,
        training=training_id,
        picture_hashes=tuple(picture["sha256"] for picture in facts["pictures"]),
        options=facts["options"],
        versions=facts["versions"],
        loss=facts["loss"],
        validation=shown,
    )
    nonce = f"{training_id} step {facts['steps']}"
    return await published.publish(store, product, card, nonce=nonce, confirm=confirm)


def _add_pictures(folder: Path, product: Path) -> tuple[str, ...]:
    """Copy pictures of the last validation beside the product; returns their paths in it."""
    steps = sorted(path for path in (folder / "validation").glob("[0-9]*") if path.is_dir())
    if not steps:
        return ()
    target = product / "validation"
    target.mkdir(exist_ok=True)
    shown = []
    for picture in sorted(steps[-1].glob("*.png"))[:_PICTURES]:
        shutil.copyfile(picture, target / picture.name)
        shown.append(f"validation/{picture.name}")
    return tuple(shown)


def _readme(facts: dict[str, Any]) -> str:
    """The model card for people, which hubs and file browsers show."""
    words = ", ".join(f"`{word}`" for word in facts["trigger_words"]) or "none"
    kind = "LoRA" if facts["kind"] == "lora" else "full model"
    loss = f"{facts['loss']:.4f}" if facts["loss"] is not None else "unknown"
    libraries = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"# {facts['name']}\n\n"
        f"A {kind}, trained from {facts['base']['name']} ({facts['family']}, {facts['prediction_type']}) on "
        f"{len(facts['pictures'])} pictures with {facts['steps']} steps by DreamBooth.\n\n"
        f"- Words that call it: {words}\n"
        f"- Prompt of its pictures: `{facts['instance_prompt']}`\n"
        f"- Mean loss at the end: {loss}\n"
        f"- Made with {libraries}\n"
    )
