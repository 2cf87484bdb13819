"""A prompt as the base's tokenizer cuts it, for the plan. No torch here."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from schemas.errors import Rejected

_CLIP = (  # where CLIP cuts a text before byte pairs are merged
    r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
)
_WORD = re.compile(r"\w+", re.UNICODE)


@cache
def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer` folder: tokenizer.json, or CLIP's vocab.json and merges.txt."""
    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        model = BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",
        )
    except Exception as error:  # the library raises plain Exception
        raise Rejected(
            "unsupported", f"base has no readable tokenizer in {folder}: {error}", field="base"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def pieces(folder: Path, text: str) -> list[str]:
    """The tokens of a text, without start, end and padding."""
    encoding = open_tokenizer(folder).encode(text, add_special_tokens=False)
    return [token for token, mask in zip(encoding.tokens, encoding.attention_mask, strict=True) if mask]


def room(folder: Path) -> int:
    """How many tokens of a prompt the text encoder sees."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    return min(int(config.get("model_max_length", 77)), 1 << 20) - 2


def words(text: str) -> list[str]:
    """The words of a text in lower case, in order, each once."""
    return list(dict.fromkeys(_WORD.findall(text.lower())))
