"""Prompts to embeddings: each different text is encoded once, however many images use it, and cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consumer.engine.device_call import DeviceCaller, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from consumer.engine.in_flight import Call
    from consumer.engine.stand_in import Embeddings


def encode(
    caller: DeviceCaller,
    cache: Embeddings,
    calls: Sequence[Call],
    key: Hashable,
    ready: Callable[[], None],
) -> list[tuple[Call, Any | Failure]]:
    """Answer text encoder calls that can be stacked, from the cache where it has them."""
    by_tokens: dict[bytes, list[Call]] = {}
    for call in calls:
        by_tokens.setdefault(_tokens(call), []).append(call)
    answers = {tokens: cache.get((key, tokens)) for tokens in by_tokens}
    new = {id(equal[0]): tokens for tokens, equal in by_tokens.items() if answers[tokens] is None}
    if new:
        for call, answer in caller.run([call for call in calls if id(call) in new], key, ready):
            answers[new[id(call)]] = answer
            if not isinstance(answer, Failure):
                cache.put((key, new[id(call)]), answer)
    return [(call, answers[tokens]) for tokens, equal in by_tokens.items() for call in equal]


def _tokens(call: Call) -> bytes:
    """A call's token numbers as bytes: equal prompts, equal bytes."""
    ids = call.arguments["input_ids"]
    mask = call.arguments.get("attention_mask")
    parts = [ids] if mask is None else [ids, mask]
    return b"".join(part.cpu().numpy().tobytes() for part in parts)
