"""Prompts with weights: read by compel, through the same text encoders, and handed to the pipeline as embeddings.

compel scales what an encoder makes of each word, away from or towards an empty prompt, and blends words below 1 with
a prompt that lacks them. Prompts of any length are read whole, in pieces of what the encoder reads at once; a `BREAK`
begins a new piece. Only CLIP's encoders are read so.

Source: compel (`EmbeddingsProvider`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine import device_errors
from consumer.engine.loading.libraries import library
from schemas.errors import Rejected
from schemas.text.prompts import is_weighted, parts, plain

if TYPE_CHECKING:
    from consumer.renderer.protocol import ImageTask
    from schemas.text.prompts import Pieces

_CLIP = 77  # tokens that CLIP reads at once


def needed(task: ImageTask) -> bool:
    """Whether a task's prompts are more than words."""
    return is_weighted(task.prompt) or is_weighted(task.negative_prompt or "")


def refuse(task: ImageTask) -> None:
    """Refuse weights for a model whose text encoders are not CLIP's. Raises `Rejected` with the field."""
    for field, text in (("prompt", task.prompt), ("negative_prompt", task.negative_prompt or "")):
        if is_weighted(text):
            raise Rejected.of_field(
                field,
                f"has weights, such as (word:1.2), [word] or BREAK, which model {task.model!r} cannot read; leave them "
                r"out, or write \( and \[ for brackets that are to be drawn",
                "unsupported",
            )


def spoken(pipe: Any, task: ImageTask) -> dict[str, Any]:
    """The keywords that replace a pipeline's prompts: embeddings, or plain words where none is weighted."""
    negative = task.negative_prompt
    words = {"prompt": plain(task.prompt), "negative_prompt": plain(negative) if negative else negative}
    if not needed(task):
        return words
    readers, nothing = _readers(pipe, task.clip_skip), ((("", 1.0),),)
    plainly = _readers(pipe, None)  # pipelines read a negative prompt to the last layer
    try:
        wanted, behind = _embedded(readers, parts(task.prompt)), _embedded(readers, nothing)
        avoided, empty = _embedded(plainly, parts(negative or "")), _embedded(plainly, nothing)
    except (
        RuntimeError,
        ValueError,
        IndexError,
    ) as error:  # compel did not find a word again among the tokens
        if device_errors.is_out_of_memory(error) or device_errors.is_sticky(error):
            raise
        text = f"has weights on words that its tokens do not separate ({type(error).__name__}); weigh other words"
        raise Rejected.of_field("prompt", text, "unsupported") from error
    pooled = _pooled(pipe, readers, words) if readers[0].projects else {}
    if negative is None and pooled and pipe.config.get("force_zeros_for_empty_prompt"):  # as SDXL does
        avoided, empty = torch.zeros_like(avoided), torch.zeros_like(empty)
    longest = max(wanted.shape[1], avoided.shape[1])
    said = {"prompt": None, "negative_prompt": None, "prompt_embeds": _filled(wanted, behind, longest)}
    return {**said, "negative_prompt_embeds": _filled(avoided, empty, longest), **pooled}


@dataclass(frozen=True)
class _Reader:
    """A text encoder as compel calls it; it answers with the layer that the pipeline reads."""

    tokenizer: Any
    encoder: Any
    device: torch.device  # of the pipeline: with offload the encoder itself is elsewhere until it is called
    skip: int  # layers from the end
    projects: bool  # SDXL's way: the layer before the last, not normalised, and a pooled vector beside it

    @property
    def dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    @property
    def limit(self) -> int:
        return min(_CLIP, self.tokenizer.model_max_length)

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor | None = None, **_how: Any) -> Any:
        if mask is not None and bool(mask.all()):
            mask = None  # as the pipeline calls it, so that the embedding is remembered for both
        ids = ids.to(self.device)
        if self.projects:
            masked = {} if mask is None else {"attention_mask": mask}
            states = self.encoder(ids, output_hidden_states=True, **masked).hidden_states
            return self._answer(states[-(self.skip + 2)])
        if not self.skip:
            return self._answer(self.encoder(ids, attention_mask=mask)[0])
        states = self.encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return self._answer(self.encoder.text_model.final_layer_norm(states[-(self.skip + 1)]))

    def _answer(self, states: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=states.to(self.device))


def _readers(pipe: Any, clip_skip: int | None) -> list[_Reader]:
    skip = max(0, (clip_skip or 1) - 1)
    names = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    projects = hasattr(pipe, "text_encoder_2")
    return [
        _Reader(
            getattr(pipe, name.replace("text_encoder", "tokenizer")),
            getattr(pipe, name),
            torch.device(pipe._execution_device),
            skip,
            projects,
        )
        for name in names
    ]


def _embedded(readers: list[_Reader], prompt: tuple[Pieces, ...]) -> torch.Tensor:
    """(1, tokens, width): the pieces of a prompt one after the other, what the encoders say side by side."""
    compel = library("compel.embeddings_provider")
    said = []
    for reader in readers:
        provider = compel.EmbeddingsProvider(
            tokenizer=reader.tokenizer,
            text_encoder=reader,
            truncate=False,
            split_long_text_mode=compel.SplitLongTextMode.PHRASES,
            model_max_length=reader.limit,
        )
        whole = [
            provider.get_embeddings_for_weighted_prompt_fragments(
                [[words for words, _ in part]], [[weight for _, weight in part]], device=reader.device
            )
            for part in prompt
        ]
        said.append(torch.cat(whole, dim=1))
    longest = max(one.shape[1] for one in said)
    return torch.cat([_filled(one, one[:, -1:], longest) for one in said], dim=-1)


def _pooled(pipe: Any, readers: list[_Reader], words: dict[str, Any]) -> dict[str, Any]:
    """SDXL's pooled vectors, as its pipeline makes them of the words without weights."""
    answer = pipe.encode_prompt(
        prompt=words["prompt"],
        device=readers[0].device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=words["negative_prompt"],
    )
    return {"pooled_prompt_embeds": answer[2], "negative_pooled_prompt_embeds": answer[3]}


def _filled(states: torch.Tensor, empty: torch.Tensor, longest: int) -> torch.Tensor:
    """As many tokens as the longest: an empty prompt stands behind."""
    missing = longest - states.shape[1]
    if not missing:
        return states
    return torch.cat([states, empty.repeat(1, -(-missing // empty.shape[1]), 1)[:, :missing]], dim=1)
