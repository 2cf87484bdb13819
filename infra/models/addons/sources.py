"""Where an addon's files lie: a folder or a file on this machine, or a repository of the hub."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.models.hub_caches import baked_cache
from infra.models.model_files import ModelUnavailable
from infra.models.safetensors_header import read_shapes
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_HUB = "hub:"


@dataclass(frozen=True, slots=True)
class Source:
    """One source as an operator writes it: a path, or `hub:owner/name[@revision][:path inside]`."""

    text: str

    @property
    def on_hub(self) -> bool:
        return self.text.startswith(_HUB)

    @property
    def path(self) -> Path:
        """Of what is on this machine."""
        return Path(self.text).expanduser()

    @property
    def inside(self) -> str:
        """The path inside a repository; "" for its root."""
        return self.text.removeprefix(_HUB).partition(":")[2].strip("/")

    def here(self, patterns: Sequence[str], cache: Path | None = None) -> Path | None:
        """The folder with a download; None if it is not on this machine."""
        for place in (*baked_cache(), cache):
            try:
                return self._snapshot(patterns, place, offline=True)
            except Exception:  # the hub's library has many errors for "not in the cache"
                continue
        return None

    def fetch(self, patterns: Sequence[str], cache: Path | None = None) -> Path:
        """The folder with a download. Raises `ModelUnavailable` where the hub does not provide it."""
        try:
            return self._snapshot(patterns, cache, offline=False)
        except Exception as error:  # network, proxy, permission, revision: all mean the same here
            text = " ".join(str(error).split())
            raise ModelUnavailable(
                f"the hub did not provide {self.text} ({type(error).__name__}: {text})"
            ) from error

    def _snapshot(self, patterns: Sequence[str], cache: Path | None, *, offline: bool) -> Path:
        from huggingface_hub import snapshot_download

        name, _, revision = self.text.removeprefix(_HUB).partition(":")[0].partition("@")
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=list(patterns),
                cache_dir=cache,
                local_files_only=offline,
            )
        )


def named(texts: Iterable[str], what: str, field: str) -> Iterator[tuple[str, str]]:
    """`name=source` settings as pairs. Raises `Rejected`."""
    seen = set[str]()
    for text in texts:
        name, _, source = (part.strip() for part in text.partition("="))
        if not (name and source):
            why = f"{what} {text!r}: write name=source; see `dreamdrop worker --help`"
            raise Rejected("invalid_manifest", why, field=field)
        if name in seen:
            raise Rejected.of_field(field, f"names {name!r} twice: give each {what} a name of its own")
        seen.add(name)
        yield name, source


def elements(file: Path) -> int:
    """How many numbers a safetensors file holds. Raises `ValueError`."""
    try:
        return sum(map(math.prod, read_shapes(file).values()))
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read: {error.strerror or error}") from error
