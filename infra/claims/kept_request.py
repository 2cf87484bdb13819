"""The request of a result. A long one, such as one with pictures in it, is an object beside the result.

Every list, sweep and poll reads results, and few of them want the request. So it is created once as
`results/<id>/request-<hash>.json`, before the result, and the result has its key and only its beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.stores.store import InvalidKey
from schemas import layout
from schemas.errors import NotFound
from schemas.result import Frozen

if TYPE_CHECKING:
    from infra.stores.store import Store
    from schemas.result import Result

INLINE = 64 << 10  # bytes of a request that its result repeats itself
_BEGINNING = 1000  # bytes of a longer one that its result has, for people


async def keep(store: Store, id: str, request: Frozen, fingerprint: str, *, batch: bool) -> Frozen:
    """What the result of `id` has of its request. Call it before the result is created.

    It may be repeated. Raises `StoreUnavailable`.
    """
    if request.cut or request.length <= INLINE:
        return request
    body = request.body()
    key = layout.kept_request_key(id, fingerprint, batch=batch)
    # Whoever else creates this key has the same body: its hash is in the name.
    await store.create(key, body, content_type="application/jsonl" if batch else layout.COMMIT_TYPE)
    return Frozen.of(body, keep=_BEGINNING).model_copy(update={"key": key})


async def with_request(store: Store, result: Result) -> Result:
    """The result with its whole request; its beginning stays (`cut`) if the object is gone or was changed."""
    key = result.request.key
    if not key or not key.startswith(layout.result_folder(result.id)):
        return result
    try:
        body = (await store.get(key)).body
    except (NotFound, InvalidKey):
        return result
    if layout.fingerprint(body) != result.fingerprint:
        return result
    return result.model_copy(update={"request": Frozen.of(body)})
