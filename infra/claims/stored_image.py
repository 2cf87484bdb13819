"""What an image says of itself in the store: enough to adopt it without reading its pixels.

The facts travel with the object, atomically. Whoever finds an image under a key believes these
facts and not its own copy, so a result never names a hash that is not stored.
"""

from __future__ import annotations

import hashlib

from infra.claims.claim import Claim
from infra.stores.store import Info
from schemas import layout
from schemas.result import ImageResult


def keys(claim: Claim, index: int, extension: str) -> list[str]:
    """Where an image may lie: its plain key, else (another plan's image is there) one of its own."""
    plain = layout.image_key(claim.id, index, extension)
    stem = plain.removesuffix(f".{extension}")
    return [plain, f"{stem}-{claim.plan_hash()[:8]}.{extension}", f"{stem}-{claim.nonce[:8]}.{extension}"]


def facts(
    claim: Claim, body: bytes, *, seed: int, width: int, height: int, content_type: str
) -> dict[str, str]:
    """An image's metadata."""
    return {
        "sha256": hashlib.sha256(body).hexdigest(),
        "plan": claim.plan_hash(),
        "seed": str(seed),
        "width": str(width),  # pixels
        "height": str(height),
        "bytes": str(len(body)),
        "type": content_type,
    }


def adopted(info: Info, index: int, claim: Claim) -> ImageResult | None:
    """What a stored image's own metadata says, if the claim's plan drew it."""
    said = info.metadata
    if said.get("plan") != claim.plan_hash():
        return None
    try:
        return ImageResult(
            index=index,
            key=info.key,
            seed=int(said["seed"]),
            width=int(said["width"]),
            height=int(said["height"]),
            bytes=int(said["bytes"]),
            sha256=said["sha256"],
            content_type=said["type"],
        )
    except (KeyError, ValueError):
        return None
