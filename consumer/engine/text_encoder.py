"""Prompts to embeddings: each different text is encoded once, whoever asks for it, and remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consumer.engine.device_call import DeviceCaller, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from consumer.engine.stand_in import Call, Embeddings


def encode(
    caller: DeviceCaller,
    memory: Embeddings,
    calls: Sequence[Call],
    key: Hashable,
    ready: Callable[[], None],
) -> list[tuple[Call, Any | Failure]]:
    """Answer text encoder calls that can be stacked, from memory where it has them."""
    askers: dict[bytes, list[Call]] = {}
    for call in calls:
        askers.setdefault(_words(call), []).append(call)
    answers = {words: memory.get((key, words)) for words in askers}
    new = {id(same[0]): words for words, same in askers.items() if answers[words] is None}
    if new:
        for call, answer in caller.run([call for call in calls if id(call) in new], key, ready):
            answers[new[id(call)]] = answer
            if not isinstance(answer, Failure):
                memory.put((key, new[id(call)]), answer)
    return [(call, answers[words]) for words, same in askers.items() for call in same]


def _words(call: Call) -> bytes:
    """A call's token numbers, as bytes: equal words, equal bytes."""
    ids = call.arguments["input_ids"]
    mask = call.arguments.get("attention_mask")
    parts = [ids] if mask is None else [ids, mask]
    return b"".join(part.cpu().numpy().tobytes() for part in parts)
