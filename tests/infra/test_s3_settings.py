"""An S3 store's settings, and errors that say what to do."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import pytest

from infra.stores.open import open_store
from infra.stores.s3 import S3Store
from schemas.errors import NotFound, StoreUnavailable, Unsupported
from tests.servers.s3_front import Fault, S3Front

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.anyio


async def test_another_store_than_aws_gets_what_it_needs(s3_front: S3Front):
    """Path-style addresses, a region, and no newer checksums for a server of one's own."""
    async with S3Store("s3://bucket") as store:
        config = (await store._client()).meta.config
        assert config.s3["addressing_style"] == "path"
        assert config.region_name == "us-east-1"
        assert config.request_checksum_calculation == "when_required"
        assert (await store._once()).meta.config.retries["total_max_attempts"] == 1


async def test_the_users_own_settings_win(s3_front: S3Front, monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Region, addressing style, endpoint and credentials come from the profile that AWS_PROFILE names."""
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = eu-north-1\nservices = lab\ns3 =\n  addressing_style = virtual\n"
        f"[services lab]\ns3 =\n  endpoint_url = {s3_front.url}\n"
    )
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = k\naws_secret_access_key = s\n")
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    store = S3Store("s3://bucket")
    config = (await store._client()).meta.config
    assert (config.region_name, config.s3["addressing_style"]) == ("eu-north-1", "virtual")
    assert store._client.endpoint == s3_front.url
    await store.close()


async def test_aws_itself_keeps_the_sdks_defaults(s3_front: S3Front, monkeypatch: pytest.MonkeyPatch):
    """Without an endpoint of one's own the newer checksums stay on."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    store = S3Store("s3://bucket")
    config = (await store._client()).meta.config
    assert store._client.endpoint == "https://s3.eu-west-1.amazonaws.com"
    assert config.request_checksum_calculation == "when_supported"
    await store.close()


def secrets_in(error: BaseException) -> bool:
    return "test-secret" in "".join(traceback.format_exception(error))


async def test_a_missing_bucket_is_named(s3_front: S3Front):
    """Opening says which bucket is not there, and where."""
    with pytest.raises(StoreUnavailable, match=r"there is no bucket 'other' at http://127.0.0.1") as caught:
        await S3Store("s3://other").open()
    assert not secrets_in(caught.value)


async def test_a_refusal_says_which_rights_are_missing(bucket: S3Store, s3_front: S3Front):
    """403 to a create is not repeated; the message lists the rights."""
    s3_front.faults.append(Fault("denied"))
    with pytest.raises(StoreUnavailable, match="access denied: give this identity s3:GetObject"):
        await bucket.create("claims/a/000001", b"")
    assert [method for method, _ in s3_front.requests].count("PUT") == 1


async def test_a_client_that_may_not_list_can_still_write(s3_front: S3Front):
    """Opening does not insist on the right to list: a submitter may only write."""
    s3_front.faults.append(Fault("denied", method="GET"))
    async with S3Store("s3://bucket") as store:
        assert await store.create("requests/a.json", b"{}")


async def test_missing_credentials_are_said(s3_front: S3Front, monkeypatch: pytest.MonkeyPatch):
    """Without credentials the message says where they are looked for."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = S3Store("s3://bucket")
    with pytest.raises(StoreUnavailable, match="no usable AWS credentials: set AWS_ACCESS_KEY_ID"):
        await store.open()
    with pytest.raises(StoreUnavailable, match="no usable AWS credentials"):
        await store.create("claims/a/000001", b"")
    await store.close()


async def test_an_unknown_profile_is_said(s3_front: S3Front, monkeypatch: pytest.MonkeyPatch):
    """A profile that is not in the configuration is a sentence, not a traceback of the SDK."""
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreUnavailable, match="AWS_PROFILE names a profile that is not"):
        await S3Store("s3://bucket").open()


async def test_an_unreachable_endpoint_is_named(s3_front: S3Front, monkeypatch: pytest.MonkeyPatch):
    """The message has the address, and the variable to look at."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    store = S3Store("s3://bucket", patience=0.1)
    with pytest.raises(StoreUnavailable, match=r"http://127.0.0.1:9 cannot be reached: check AWS_ENDPOINT"):
        await store.create("claims/a/000001", b"")
    await store.close()


async def test_a_password_in_the_address_is_not_shown(s3_front: S3Front, monkeypatch: pytest.MonkeyPatch):
    """Host and port of the endpoint are shown, and nothing more of it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:hunter2@127.0.0.1:9")
    store = S3Store("s3://bucket", patience=0.1)
    with pytest.raises(StoreUnavailable, match=r"http://127.0.0.1:9") as caught:
        await store.create("claims/a/000001", b"")
    assert "hunter2" not in str(caught.value)
    await store.close()


async def test_a_missing_object_is_not_a_missing_bucket(bucket: S3Store, s3_front: S3Front):
    """NotFound is for keys; a bucket that vanishes is the world's fault."""
    with pytest.raises(NotFound):
        await bucket.get("results/a/result.json")
    s3_front.buckets.clear()
    with pytest.raises(StoreUnavailable, match="there is no bucket"):
        await bucket.get("results/a/result.json")
    with pytest.raises(StoreUnavailable, match="there is no bucket"):
        await bucket.create("results/a/result.json", b"")
    with pytest.raises(StoreUnavailable, match="there is no bucket"):
        [info async for info in bucket.list("")]


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://bucket--use1-az4--x-s3"])
def test_what_names_no_usable_bucket_is_refused(url: str):
    """The message says what to write instead."""
    with pytest.raises(Unsupported, match=r"write s3://bucket|use a general purpose bucket"):
        open_store(url)
