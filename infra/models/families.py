"""The families of models, by the class of their text2img pipeline in diffusers. Data only: a new family is one line.

What differs from pipeline to pipeline is how a request is said to it, what it cannot use, and what its files do not
tell: its native size, and the steps and guidance that suit it. How its denoiser's calls are joined stands in
`consumer.engine.denoisers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from schemas.defaults import CFG_SCALE, STEPS

#: How guidance is said: `guidance_scale` as it is; as a number that the denoiser reads (no negative prompt); as
#: `true_cfg_scale`; or as `guidance_scale` with one taken off, for pipelines that compute c + g (c - u).
Guidance = Literal["cfg", "number", "true_cfg", "less_one"]
#: How latents lie in a scheduler's step. "planes": (1, channels, h, w), of an AutoencoderKL; "packed": the same as
#: tokens, which the pipeline's `_unpack_latents` turns back; "other": in a way of which no previews can be made.
Latents = Literal["planes", "packed", "other"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_AS_IT_IS = MappingProxyType({"use_resolution_binning": False, "clean_caption": False})


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of pipeline."""

    label: str  # for people
    denoiser: str = "transformer"  # the component
    guidance: Guidance = "cfg"
    reader: str = "tokenizer"  # the tokenizer that reads most of a prompt
    tokens: int = 77  # at most, of a prompt
    layers: tuple[int, ...] = ()  # of a text encoder's hidden states, the ones that are read; (): perhaps all
    latents: Latents = "planes"  # as its scheduler gets them
    pack: int = 1  # latent cells a side that are packed into one token, beside the denoiser's own patches
    native: int = 0  # pixels a side; 0: the denoiser's sample size tells
    steps: int = STEPS
    cfg_scale: float = CFG_SCALE
    few: int = 4  # steps where the model is distilled: their cards say 1 to 9
    tasks: tuple[str, ...] = ("text2img", "img2img", "inpainting")  # of these, those that diffusers has
    pictures: int = (
        0  # that its own pipeline edits at most, as a prompt says; 0: it starts from one, or takes none
    )
    smallest: int = 0  # pixels a side of a picture that it edits, at least
    longest: int = 0  # how many times its shorter side the longer one may be; 0: any
    optional: tuple[str, ...] = ()  # components without which it draws, too
    one_sampler: bool = False  # its pipeline works with its own sampler only
    keywords: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)  # of every call
    controlnets: bool = False  # diffusers' ControlNetModel guides it
    weighs: bool = False  # prompts may have weights: CLIP reads all of them
    joins: bool = True  # the calls of several images may be joined; else they are drawn one at a time

    @property
    def needs_picture(self) -> bool:
        """Whether it cannot draw from a prompt alone."""
        return "text2img" not in self.tasks


_SD: dict[str, Any] = {"denoiser": "unet", "controlnets": True, "weighs": True}
_PACKED: dict[str, Any] = {"latents": "packed", "pack": 2, "native": 1024}
_FLUX: dict[str, Any] = {"reader": "tokenizer_2", "tokens": 512, **_PACKED}
_QWEN: dict[str, Any] = {"guidance": "true_cfg", "tokens": 512, "layers": (-1,), "pack": 2, "native": 1024}
_QWEN["latents"] = "other"  # its VAE is one of videos, with statistics of its own
_EDITS = ("text2img", "img2img")

FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family("SD 1.x, 2.x", **_SD),
    "StableDiffusionXLPipeline": Family("SDXL", **_SD, optional=("text_encoder", "tokenizer")),
    "LatentConsistencyModelPipeline": Family(
        "LCM", **_SD, guidance="number", steps=4, cfg_scale=8.5, one_sampler=True
    ),
    "FluxPipeline": Family("FLUX.1", **_FLUX, guidance="number", steps=28, cfg_scale=3.5),
    "StableDiffusion3Pipeline": Family(
        "SD 3, 3.5",
        reader="tokenizer_3",
        tokens=256,
        steps=28,
        optional=("text_encoder_3", "tokenizer_3"),
    ),
    "ZImagePipeline": Family(
        "Z-Image", guidance="less_one", tokens=512, layers=(-2,), native=1024, steps=50, cfg_scale=5, few=9
    ),
    "FluxKontextPipeline": Family(
        "FLUX.1 Kontext", **_FLUX, guidance="number", steps=28, cfg_scale=2.5, tasks=_EDITS, pictures=1
    ),
    "QwenImagePipeline": Family("Qwen-Image", **_QWEN, steps=50, cfg_scale=4),
    "QwenImageEditPipeline": Family(
        "Qwen-Image-Edit", **_QWEN, steps=50, cfg_scale=4, tasks=("img2img",), pictures=1
    ),
    "QwenImageEditPlusPipeline": Family(
        "Qwen-Image-Edit-Plus", **_QWEN, steps=40, cfg_scale=4, tasks=("img2img",), pictures=3
    ),
    "Flux2KleinPipeline": Family(
        "FLUX.2-klein",
        tokens=512,
        layers=(9, 18, 27),
        latents="other",  # packed, and normalised by the VAE's running statistics
        pack=2,
        native=1024,
        steps=50,
        cfg_scale=4,
        tasks=_EDITS,
        pictures=4,
        smallest=64,
        longest=8,
    ),
    "ChromaPipeline": Family(
        "Chroma", tokens=512, **_PACKED, steps=35, cfg_scale=5, tasks=("text2img", "img2img")
    ),
    "PixArtSigmaPipeline": Family(
        "PixArt-Sigma", tokens=300, steps=20, cfg_scale=4.5, tasks=("text2img",), keywords=_AS_IT_IS
    ),
    "SanaPipeline": Family(
        "Sana",
        latents="other",  # a cell is 32 pixels a side: too many colours for one
        tokens=300,
        steps=20,
        cfg_scale=4.5,
        tasks=("text2img",),
        keywords=_AS_IT_IS,
    ),
    "Lumina2Pipeline": Family(
        "Lumina 2", tokens=256, layers=(-2,), native=1024, cfg_scale=4, tasks=("text2img",)
    ),
}
_NON_COMMERCIAL = "FLUX.1 [dev] Non-Commercial"
#: Models that many people ask for by name. Revisions, licences and sizes are those that public records of the hub name;
#: steps and guidance those of the models' own pages.
POPULAR_MODELS: Mapping[str, Mapping[str, Any]] = {
    "flux-schnell": {
        "repository": "black-forest-labs/FLUX.1-schnell",
        "revision": "741f7c3ce8b383c54771c7003378a50191e9efe9",
        "family": "FluxPipeline",
        "licence": "Apache-2.0",
        "steps": 4,
        "cfg_scale": 0,
        "parameters": 16_860_000_000,
        "gated": True,
    },
    "flux-dev": {
        "repository": "black-forest-labs/FLUX.1-dev",
        "revision": "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
        "family": "FluxPipeline",
        "licence": _NON_COMMERCIAL,
        "steps": 28,
        "cfg_scale": 3.5,
        "parameters": 16_870_000_000,
        "gated": True,
    },
    "flux-kontext": {
        "repository": "black-forest-labs/FLUX.1-Kontext-dev",
        "revision": "af58063aa431f4d2bbc11ae46f57451d4416a170",
        "family": "FluxKontextPipeline",
        "licence": _NON_COMMERCIAL,
        "steps": 28,
        "cfg_scale": 2.5,
        "parameters": 16_870_000_000,
        "gated": True,
    },
    "flux2-klein": {
        "repository": "black-forest-labs/FLUX.2-klein-4B",
        "revision": "e7b7dc27f91deacad38e78976d1f2b499d76a294",
        "family": "Flux2KleinPipeline",
        "licence": "Apache-2.0",
        "steps": 4,
        "cfg_scale": 0,
        "parameters": 7_980_000_000,
    },
    "qwen-image": {
        "repository": "Qwen/Qwen-Image",
        "revision": "75e0b4be04f60ec59a75f475837eced720f823b6",
        "family": "QwenImagePipeline",
        "licence": "Apache-2.0",
        "steps": 50,
        "cfg_scale": 4,
        "parameters": 28_850_000_000,
    },
    "qwen-image-edit": {
        "repository": "Qwen/Qwen-Image-Edit-2509",
        "revision": "d3968ef930e841f4c73640fb8afa3b306a78167e",
        "family": "QwenImageEditPlusPipeline",
        "licence": "Apache-2.0",
        "steps": 40,
        "cfg_scale": 4,
        "parameters": 28_850_000_000,
    },
    "sd35-medium": {
        "repository": "stabilityai/stable-diffusion-3.5-medium",
        "revision": "b940f670f0eda2d07fbb75229e779da1ad11eb80",
        "family": "StableDiffusion3Pipeline",
        "licence": "Stability AI Community",
        "steps": 40,
        "cfg_scale": 4.5,
        "parameters": 8_130_000_000,
        "gated": True,
    },
    "z-image-turbo": {
        "repository": "Tongyi-MAI/Z-Image-Turbo",
        "revision": "f332072aa78be7aecdf3ee76d5c247082da564a6",
        "family": "ZImagePipeline",
        "licence": "Apache-2.0",
        "steps": 9,
        "cfg_scale": 0,
        "parameters": 10_260_000_000,
    },
}
_KINDS = ("Img2Img", "Inpaint")
#: The components that a pipeline of any class may have; of some there may be several.
_PLAIN = {"transformer", "unet", "vae", "scheduler", "safety_checker", "feature_extractor"}
_NUMBERED = ("text_encoder", "tokenizer")


def too_many_pictures(model: str, given: int, most: int) -> str:
    """Why a model does not take so many pictures."""
    takes = "one" if most == 1 else f"at most {most}"
    return f"has {given} pictures; model {model!r} takes {takes}"


def base_class(pipeline: str) -> str:
    """The text2img pipeline of a class that does another task: FluxPipeline for FluxImg2ImgPipeline."""
    for kind in _KINDS:
        pipeline = pipeline.replace(f"{kind}Pipeline", "Pipeline")
    return pipeline


def family_of(pipeline: object, components: Mapping[str, Any]) -> Family | None:
    """The family of a pipeline's class; for one that no line knows, how it is drawn with care: one image at a time.

    Args:
        components: of the pipeline, by name.

    Returns:
        None for a class that has parts which this engine does not know, or no denoiser of its own.
    """
    if not isinstance(pipeline, str):
        return None
    known = FAMILIES.get(base_class(pipeline))
    if known is not None:
        return known
    denoisers = [name for name in ("transformer", "unet") if name in components]
    strange = [name for name in components if name not in _PLAIN and not name.startswith(_NUMBERED)]
    if len(denoisers) != 1 or strange or not pipeline.endswith("Pipeline"):
        return None
    latents: Latents = "planes" if denoisers == ["unet"] else "other"
    return Family(pipeline, denoisers[0], latents=latents, tasks=("text2img",), tokens=0, joins=False)
