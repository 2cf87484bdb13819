"""The IP-Adapters that an operator registers: a file of weights and an image encoder, checked before they are used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.models.addons.sources import Source, named
from infra.models.folders import WIDTHS
from infra.models.json_files import read_object
from infra.models.model_files import ModelUnavailable
from infra.models.safetensors_header import read_shapes
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable

_ENCODER = "image_encoder"  # the folder beside the weights, as they are published
_WIDTH = ".to_k_ip.weight"  # (hidden, width of the text that the UNet reads)


@dataclass(frozen=True, slots=True)
class Files:
    """An IP-Adapter on this machine."""

    weights: Path
    encoder: Path  # a folder with a CLIP vision model
    width: int  # of the text that its UNets read
    reads_tokens: bool  # of the encoder, as the "plus" kind does, rather than one vector for the picture


@dataclass(frozen=True, slots=True)
class IpAdapter:
    """One registered IP-Adapter."""

    name: str
    source: Source
    encoder: str = ""  # a folder, here or in the repository; "": the one beside the weights
    family: str = ""  # of the models that it fits; "" where that cannot be told

    def files(self, *, offline: bool, cache: Path | None = None) -> Files:
        """Its files, downloaded if need be.

        Raises:
            Rejected: it is not an IP-Adapter that this worker can use.
            ModelUnavailable: it is on the hub, which does not provide it.
        """
        if not self.source.on_hub:
            return check(self.name, self.source.path, self.encoder)
        inside = Path(self.source.inside)
        own = Path(self.encoder).expanduser().is_absolute()  # the operator's, and not the repository's
        encoder = Path(self.encoder) if self.encoder else inside.parent / _ENCODER
        theirs = [] if own else [encoder / "config.json", encoder / "*.safetensors"]
        patterns = [str(path) for path in (inside, *theirs)]
        folder = self.source.here(patterns, cache)
        if folder is None or not all(any(folder.glob(pattern)) for pattern in patterns):
            if offline:
                text = f"IP-Adapter {self.name!r} is not in the download cache, and the worker is offline"
                raise ModelUnavailable(text)
            folder = self.source.fetch(patterns, cache)
        return check(self.name, folder / inside, str(encoder.expanduser() if own else folder / encoder))


def find_ip_adapters(texts: Iterable[str]) -> dict[str, IpAdapter]:
    """Read `name=file`, `name=folder` and `name=hub:owner/name[@revision]:path` settings. Raises `Rejected`.

    Behind the source there may be `,encoder=folder`; of one on the hub it may be a folder of its repository. What is on
    this machine is checked.
    """
    found: dict[str, IpAdapter] = {}
    for name, text in named(texts, "IP-Adapter", "ip_adapter"):
        where, _, encoder = text.partition(",encoder=")
        source, family = Source(where.strip()), ""
        if source.on_hub and not source.inside.endswith(".safetensors"):
            text = f"has {name}={text}: name the file, too: hub:owner/name:models/ip-adapter_sd15.safetensors"
            raise Rejected.of_field("ip_adapter", text)
        if not source.on_hub:
            family = WIDTHS.get(check(name, source.path, encoder.strip()).width, "")
        found[name] = IpAdapter(name, source, encoder.strip(), family)
    return found


def check(name: str, place: Path, encoder: str) -> Files:
    """Check an IP-Adapter's weights and its image encoder. Raises `Rejected` with the first problem.

    Args:
        place: the file, or a folder that holds one.
        encoder: a folder; "": the one beside the weights.
    """
    file = _weights(name, place)
    try:
        shapes = read_shapes(file)
    except (OSError, ValueError) as error:
        raise _refused(name, file, str(error)) from error
    widths = {
        shape[1] for key, shape in shapes.items() if key.startswith("ip_adapter.") and key.endswith(_WIDTH)
    }
    plain, plus = shapes.get("image_proj.proj.weight"), shapes.get("image_proj.proj_in.weight")
    if len(widths) != 1 or not (plain or (plus and "image_proj.latents" in shapes)):
        known = "it can use the plain and the plus kind, not those for faces (FaceID, full face)"
        raise _refused(name, file, f"this worker cannot use this IP-Adapter; {known}")
    folder = Path(encoder).expanduser() if encoder else file.parent / _ENCODER
    reads, field = ((plain or (0, 0))[1], "projection_dim") if plain else ((plus or (0, 0))[1], "hidden_size")
    _check_encoder(name, file, folder, field, reads)
    return Files(file, folder, widths.pop(), reads_tokens=not plain)


def _weights(name: str, place: Path) -> Path:
    if not place.is_dir():
        if not place.is_file():
            raise _refused(name, place, "there is no such file")
        if place.suffix != ".safetensors":
            raise _refused(name, place, "it is not a safetensors file, and this worker loads nothing else")
        return place
    files = sorted(place.glob("*.safetensors"))
    if len(files) != 1:
        raise _refused(name, place, f"the folder holds {len(files) or 'no'} safetensors files; name the one")
    return files[0]


def _check_encoder(name: str, file: Path, folder: Path, field: str, expected: int) -> None:
    """Refuse an image encoder that is not there, or whose answers the IP-Adapter does not read."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        text = f"its image encoder is not in {folder}; give it as {name}={file},encoder=FOLDER"
        raise _refused(name, file, text)
    config: dict[str, Any] = read_object(folder / "config.json")
    if (found := config.get(field)) != expected:
        text = f"it reads image encoders with a {field} of {expected}; the one in {folder} has {found}"
        raise _refused(name, file, f"{text}; give another one as ,encoder=FOLDER")


def _refused(name: str, place: Path, why: str) -> Rejected:
    return Rejected("unsupported", f"IP-Adapter {name!r} in {place}: {why}", field="ip_adapter")
