"""What words mean: the text encoder learns the attributes of scenes before it meets the UNet."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.doodle import modules, scenes
from training.doodle.scenes import KINDS, PALETTE, Scene

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


def _attributes(scene: Scene) -> list[int]:
    """What the caption says, as class numbers; 0 where it is silent."""
    colours, kinds, words = list(PALETTE), list(KINDS), scene.caption.split()
    ground = colours.index(scene.background) + 1 if "background" in words else 0
    named = words[: words.index("on")] if "background" in words and len(scene.shapes) > 1 else words
    found = [ground]
    for i in range(2):
        shape = scene.shapes[i] if i < len(scene.shapes) else None
        said_kind = shape is not None and shape.kind in named
        colour_said = (
            shape is not None and f"{shape.colour} {shape.kind if said_kind else 'shape'}" in scene.caption
        )
        found.append(kinds.index(shape.kind) + 1 if shape and said_kind else 0)
        found.append(colours.index(shape.colour) + 1 if shape and colour_said else 0)
    where = [p for p in scenes.PLACES if p in scene.caption]
    found.append(list(scenes.PLACES).index(where[0]) + 1 if where else int("above" in words) * 5)
    found.append(1 if "small" in words else 2 if "large" in words else 0)
    return found


def train_words(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, steps: int) -> None:
    """Teach the text encoder the scene's attributes, so that the UNet meets meaning, not noise."""
    rng = random.Random(1)
    torch.manual_seed(1)
    sizes = [11, 7, 11, 7, 11, 6, 3]
    heads = nn.ModuleList(nn.Linear(encoder.config.hidden_size, n) for n in sizes)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.01)
    for step in range(steps):
        batch = [scenes.sample(rng) for _ in range(128)]
        hidden = encoder(tokenize(tokenizer, [s.caption for s in batch])).last_hidden_state[:, -1]
        truth = torch.tensor([_attributes(s) for s in batch])
        losses = [F.cross_entropy(head(hidden), truth[:, i]) for i, head in enumerate(heads)]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"words {step}/{steps} loss {loss.item():.4f}", flush=True)


#: Words that captions never use, and the ones whose meaning they take.
SYNONYMS = {"an": "a", "the": "a", "big": "large"}


@torch.no_grad()
def share_meanings(tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
    """Give each synonym the embedding of its word, so that people may write either."""
    table = encoder.get_input_embeddings().weight
    for word, known in SYNONYMS.items():
        mine, theirs = (tokenizer(w).input_ids[1] for w in (word, known))
        table[mine] = table[theirs]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Captions to (n, MAX_TOKENS) token numbers, padded and cut as Stable Diffusion does."""
    return tokenizer(
        captions, padding="max_length", max_length=modules.MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
