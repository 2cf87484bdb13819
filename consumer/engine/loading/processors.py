"""The processor of Qwen2-VL without its part for videos, which needs torchvision and which no pipeline here uses.

It makes tokens and patches of a prompt and its pictures. Pillow scales the pictures, whether or not torchvision is
installed, so that all workers draw alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin

#: What model_index.json files call it.
NAMES = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")


class PictureProcessor(Qwen2VLProcessor):
    """As its parent, for pictures and text only."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_kwargs: Any
    ) -> None:
        for kind in ("image", "video"):
            token = getattr(tokenizer, f"{kind}_token", None) or f"<|{kind}_pad|>"
            setattr(self, f"{kind}_token", token)
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def load(folder: Path) -> Any:
    """The processor in a folder of a pipeline."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return PictureProcessor(pictures, tokenizer, chat_template=tokenizer.chat_template)
