"""Odd keys, errors that stay, object lock and versioned buckets: what real S3 servers do besides."""

from __future__ import annotations

import pytest

from infra.stores.probe import probe
from infra.stores.s3 import S3Store
from producer.checks import doctor
from schemas.errors import StoreUnavailable, Unsupported
from tests.servers.s3_front import Fault, S3Front

pytestmark = pytest.mark.anyio


async def test_a_key_with_dots_that_the_server_resolves_is_never_mistaken_for_another(
    bucket: S3Store, s3_front: S3Front, monkeypatch: pytest.MonkeyPatch
):
    """A server or a proxy that resolves dots answers with another object; that one is not taken."""
    for check in ("check_key", "check_prefix"):  # the server's own store takes any
        monkeypatch.setattr(f"infra.stores.memory.{check}", lambda text: None)
    key = "requests/../uploads/secret.json"
    await bucket.put("uploads/secret.json", b"secret")
    await s3_front.store.create(f"bucket/{key}", b"dropped", metadata={"content-md5": "0" * 32})
    answer = s3_front._get

    async def resolving(request: object, full: str) -> object:
        return await answer(request, full.replace("requests/../", ""))

    monkeypatch.setattr(s3_front, "_get", resolving)
    [listed] = [info async for info in bucket.list("requests/")]
    with pytest.raises(StoreUnavailable, match="names another object"):
        await bucket.get(listed.key)


def test_a_prefix_behind_which_our_keys_do_not_fit_is_refused():
    """A result's key may have hundreds of bytes."""
    with pytest.raises(Unsupported, match="shorten it"):
        S3Store(f"s3://bucket/{'p' * 600}")


@pytest.mark.parametrize(
    ("status", "code", "text", "advice", "wrong"),
    [
        (
            403,
            "InvalidObjectState",
            "not valid for the object's storage class",
            "is archived",
            "s3:GetObject",
        ),
        (400, "KMS.DisabledException", "arn:aws:kms:1:key/x is disabled", "KMS key.*disabled", "again later"),
        (400, "KMS.KMSInvalidStateException", "pending deletion", "KMS key.*deleted", "again later"),
        (403, "KMS.AccessDeniedException", "", "give it kms:Decrypt", "s3:GetObject"),
        (
            403,
            "AccessDenied",
            "not authorized to perform: kms:Decrypt",
            "give it kms:Decrypt",
            "s3:GetObject",
        ),
        (400, "InvalidRequest", "stored using a form of Server Side Encryption", "SSE-C", "again later"),
        (403, "AccessDenied", "Access Denied", "this object alone is denied", "again later"),
        (403, "NewCode", "", "refuses it with 403 NewCode", "s3:GetObject"),
        (405, "MethodNotAllowed", "", "refuses it with 405", "again later"),
        (500, "InternalError", "", "again later", "s3:GetObject"),
    ],
)
async def test_an_error_that_stays_has_the_stores_code_and_advice_that_fits(
    bucket: S3Store, s3_front: S3Front, status: int, code: str, text: str, advice: str, wrong: str
):
    """The store's own words are searched and not repeated: they may hold what is nobody's business."""
    await bucket.put("requests/a.json", b"{}")
    s3_front.faults.append(Fault("refused", method="GET", status=status, code=code, text=text))
    with pytest.raises(StoreUnavailable, match=advice) as caught:
        await bucket.get("requests/a.json")
    assert code in str(caught.value)
    assert wrong not in str(caught.value)
    assert "arn:aws" not in str(caught.value)


async def test_a_bare_refusal_of_a_look_names_what_it_may_be(bucket: S3Store, s3_front: S3Front):
    """HEAD has no body: 403 may be this object only, 400 is how a customer's key (SSE-C) shows."""
    for status, advice in ((403, "this object alone is denied"), (400, "SSE-C")):
        s3_front.faults[:] = [Fault("refused", method="HEAD", status=status)]
        with pytest.raises(StoreUnavailable, match=advice):
            await bucket.head("requests/a.json")


async def test_a_bucket_with_object_lock_gets_its_checksum(bucket: S3Store, s3_front: S3Front):
    """Both kinds of write carry an MD5; a server that asks for another checksum is not called unable."""
    s3_front.faults.append(Fault("object_lock"))
    assert await bucket.create("claims/a/000001", b"body", metadata={"plan": "x"})
    await bucket.put("workers/a", b"beat")
    text = "Content-MD5 OR x-amz-checksum- HTTP header is required"
    s3_front.faults[:] = [Fault("refused", code="InvalidRequest", text=text)]
    with pytest.raises(StoreUnavailable, match="object lock asks for a checksum"):
        await bucket.create("claims/b/000001", b"body")


async def test_a_versioned_bucket_is_named_where_conditional_writes_fail(bucket: S3Store, s3_front: S3Front):
    """Ceph's fail there; without versioning the message is as it was."""
    s3_front.faults.append(Fault("ignore_condition"))
    with pytest.raises(Unsupported) as plain:
        await probe(bucket)
    assert "versioned" not in str(plain.value)
    s3_front.versioned = True
    with pytest.raises(Unsupported, match="The bucket is versioned"):
        await probe(bucket)
    assert await bucket.versions() == "kept"
    found = await doctor.versions(bucket)
    assert found is not None
    assert (found.status, "NoncurrentVersionExpiration" in found.fix) == ("warn", True)
