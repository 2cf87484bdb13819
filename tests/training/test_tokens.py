"""The plan counts tokens as the base's own tokenizer does, in both of its forms on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.errors import Rejected
from tests.trainings import DOODLE
from training.tokens import pieces, room, words

TEXTS = ["a red sks shape", "Über  Straße, it's 42 years!", "", "sks\n\tsks", "日本 😀"]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer as vocab.json and merges.txt, as older repositories have it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    model = json.loads((DOODLE / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_pipelines_own(text: str, older: Path):
    from transformers import CLIPTokenizer

    own = CLIPTokenizer.from_pretrained(DOODLE / "tokenizer")
    expected = own.convert_ids_to_tokens(own(text, add_special_tokens=False).input_ids)
    assert pieces(DOODLE / "tokenizer", text) == expected
    assert pieces(older, text) == expected


def test_start_and_end_take_room():
    assert room(DOODLE / "tokenizer") == 30


def test_words_are_told_once_in_order():
    assert words("A photo of SKS dog, sks!") == ["a", "photo", "of", "sks", "dog"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(Rejected, match="no readable tokenizer"):
        pieces(tmp_path, "a")
