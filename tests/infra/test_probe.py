"""A store is tried before it is trusted, and what it cannot do is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from infra.stores.memory import MemoryStore
from infra.stores.open import OpenableStore, open_store
from infra.stores.probe import probe
from schemas.errors import StoreUnavailable, Unsupported
from tests.servers.s3_front import Fault, S3Front

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from infra.stores.store import Info

pytestmark = pytest.mark.anyio


async def test_a_good_store_is_level_a_and_left_as_it_was(
    store: OpenableStore, request: pytest.FixtureRequest
):
    """Every shipped store passes, and nothing stays behind."""
    if "moto" in request.node.callspec.id:
        pytest.skip("moto's creates are not atomic, so its level is a matter of luck")
    verdict = await probe(store, rounds=4)
    assert (verdict.level, verdict.is_atomic) == ("A", True)
    assert verdict.conditional_delete
    assert [info.key async for info in store.list("")] == []


async def test_a_store_that_ignores_conditions_is_refused(s3_front: S3Front):
    """A second create that overwrites is recognised, and the header is named."""
    s3_front.faults.append(Fault("ignore_condition"))
    async with open_store("s3://bucket") as store:
        with pytest.raises(Unsupported, match=r"overwrote an object although .* If-None-Match"):
            await probe(store)
        assert [info.key async for info in store.list("")] == []


async def test_a_store_that_refuses_conditions_is_refused(s3_front: S3Front):
    """501 to the first create is the end of the probe."""
    s3_front.faults.append(Fault("unsupported"))
    async with open_store("s3://bucket") as store:
        with pytest.raises(Unsupported, match="refused a conditional write"):
            await probe(store)


async def test_a_store_that_checks_and_then_acts_is_for_one_worker(s3_front: S3Front):
    """Two winners in one race make it level B, with the reason."""
    s3_front.faults.append(Fault("check_then_act"))
    async with open_store("s3://bucket") as store:
        verdict = await probe(store, rounds=3)
        assert verdict.level == "B"
        assert "only one worker may use it" in verdict.reason
        assert [info.key async for info in store.list("")] == []


async def test_a_delete_that_ignores_its_condition_is_noticed():
    """It is no reason to refuse, only something to know."""

    class Careless(MemoryStore):
        async def delete(self, key: str, *, etag: str | None = None) -> None:
            await super().delete(key)

    verdict = await probe(Careless(), rounds=1)
    assert (verdict.level, verdict.conditional_delete) == ("A", False)


async def test_a_store_that_lists_late_is_refused():
    """Requests would be overlooked."""

    class Forgetful(MemoryStore):
        async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
            for info in ():
                yield info

    with pytest.raises(Unsupported, match="does not list an object just after it was written"):
        await probe(Forgetful(), rounds=1)


async def test_a_store_without_metadata_is_refused():
    """A retry could not tell whose image it finds."""

    class Plain(MemoryStore):
        async def create(
            self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
        ) -> bool:
            return await super().create(key, body)

    with pytest.raises(Unsupported, match="does not keep the metadata"):
        await probe(Plain(), rounds=1)


async def test_a_store_that_is_down_is_not_called_unsuitable(s3_front: S3Front):
    """An unreachable or forbidding store is the world's fault, to be tried again."""
    async with open_store("s3://bucket") as store:
        s3_front.faults.append(Fault("denied"))
        with pytest.raises(StoreUnavailable, match="access denied"):
            await probe(store)
