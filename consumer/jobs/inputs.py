"""Reads a manifest's input pictures, from the manifest itself or from an object in this store.

An object is read with the worker's permissions, so its key must begin with a prefix that the operator has
named. Another bucket, a URL or a path is never opened.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.pictures import decode_base64
from infra.stores.keys import MAX_KEY_BYTES
from infra.stores.store import InvalidKey
from schemas.errors import NotFound, Rejected, TooLarge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.stores.store import Store
    from schemas.limits import Limits

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_KEY = re.compile(r"[^\s=]+/[^\s=]+\.(png|jpe?g|webp)", re.IGNORECASE)  # base64 has no dot


@dataclass(frozen=True, slots=True)
class Inputs:
    """Reads the pictures that a manifest contains or names."""

    store: Store
    limits: Limits
    prefixes: Sequence[str]

    async def read(self, value: str, field: str) -> bytes:
        """The bytes of a picture. Raises `Rejected` that names the field."""
        scheme = _SCHEME.match(value)
        # Long texts are not searched: a megabyte of base64 has so many slashes that it takes minutes.
        if scheme is None and not (len(value) <= MAX_KEY_BYTES and _KEY.fullmatch(value)):
            return decode_base64(value, field, self.limits)
        key = self._key(value, field) if scheme else value
        if ".." in key or not key.startswith(tuple(self.prefixes)):
            allowed = ", ".join(self.prefixes) or "none"
            raise Rejected(
                "invalid_manifest",
                f"{field} names a key that this worker may not read; allowed prefixes: {allowed}",
                field=field,
            )
        try:
            return (await self.store.get(key, max_bytes=self.limits.max_body_bytes)).body
        except (NotFound, InvalidKey) as error:
            raise Rejected(
                "invalid_manifest", f"{field}: there is no object {key[:200]!r}", field=field
            ) from error
        except TooLarge as error:
            raise Rejected("too_large", f"{field}: {error.message}", field=field) from error

    def _key(self, value: str, field: str) -> str:
        own = self.store.url.rstrip("/") + "/"
        if not value.startswith("s3://") or not value.startswith(own):
            raise Rejected(
                "invalid_manifest",
                f"{field} is a URL; give the picture as base64, or as a key of this worker's own store",
                field=field,
            )
        return value.removeprefix(own)
