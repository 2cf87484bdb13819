"""What an image's metadata in the store says: enough to adopt the image without reading its pixels.

The metadata is written with the object, atomically. Whoever finds an image under a key uses this metadata
and not its own copy of the image, so a result never names a hash that is not stored.
"""

from __future__ import annotations

import hashlib

from infra.claims.claim import Claim
from infra.stores.store import Info
from schemas import layout
from schemas.result import ImageResult


def keys(claim: Claim, index: int, extension: str) -> list[str]:
    """Where an image may be: its plain key, else (another plan's image has that) keys of its own."""
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
    """The image that a stored object's metadata describes, if it was drawn from the claim's plan."""
    metadata = info.metadata
    if metadata.get("plan") != claim.plan_hash():
        return None
    try:
        return ImageResult(
            index=index,
            key=info.key,
            seed=int(metadata["seed"]),
            width=int(metadata["width"]),
            height=int(metadata["height"]),
            bytes=int(metadata["bytes"]),
            sha256=metadata["sha256"],
            content_type=metadata["type"],
        )
    except (KeyError, ValueError):
        return None
