"""What an S3 store owes beyond the common promises: lost answers, storms, and errors that say what to do."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import pytest

from infra.stores.open import open_store
from infra.stores.probe import probe
from infra.stores.s3 import S3Store
from infra.stores.store import InvalidKey
from producer.checks import doctor
from schemas.errors import NotFound, StoreUnavailable, TooLarge, Unsupported
from tests.servers.s3_front import Fault, S3Front

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bucket(s3_front: S3Front) -> AsyncIterator[S3Store]:
    """An open store on the server that can misbehave; its waits are drawn from a fixed seed."""
    async with S3Store("s3://bucket", patience=20, rng=random.Random(7), read_timeout=0.5) as opened:
        s3_front.requests.clear()
        yield opened


def puts(front: S3Front) -> int:
    return sum(1 for method, _ in front.requests if method == "PUT")


# Creates whose answer is lost ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["broken_after", "cut_after"])
async def test_a_lost_answer_is_read_back_as_ours(bucket: S3Store, s3_front: S3Front, kind: str):
    """The write was done and the answer was not: the nonce tells that it is ours."""
    s3_front.faults.append(Fault(kind, times=1))
    assert await bucket.create("results/a/result.json", b"{}", metadata={"plan": "p"})

    assert puts(s3_front) <= 2, "the HTTP library repeats by itself on a connection that had been idle"
    found = await bucket.get("results/a/result.json")
    assert (found.body, dict(found.info.metadata)) == (b"{}", {"plan": "p"})


@pytest.mark.parametrize("kind", ["broken", "cut", "slow_down", "conflict"])
async def test_a_write_that_was_not_done_is_repeated(bucket: S3Store, s3_front: S3Front, kind: str):
    """Nothing was written three times; the fourth try is ours."""
    s3_front.faults.append(Fault(kind, times=3))
    assert await bucket.create("claims/a/000001", b"mine")
    assert puts(s3_front) == 4
    assert (await bucket.get("claims/a/000001")).body == b"mine"


async def test_our_own_late_write_is_no_rival(bucket: S3Store, s3_front: S3Front):
    """A write that takes effect after we gave up on it meets its own nonce."""
    s3_front.faults.append(Fault("late", times=4, seconds=0.05))
    assert await bucket.create("claims/a/000001", b"mine")
    assert (await bucket.get("claims/a/000001")).body == b"mine"


async def test_a_write_that_outlasts_the_time_out_is_ours(bucket: S3Store, s3_front: S3Front):
    """Silence for longer than the read time-out is a lost answer like any other."""
    s3_front.faults.append(Fault("delay", times=1, seconds=0.9))
    assert await bucket.create("claims/a/000001", b"mine")
    assert (await bucket.get("claims/a/000001")).body == b"mine"


@pytest.mark.parametrize("kind", ["broken", "broken_after", "cut", "cut_after", "slow_down", "conflict"])
async def test_a_lost_answer_never_hides_who_was_first(bucket: S3Store, s3_front: S3Front, kind: str):
    """When somebody else's object is there, no fault makes us believe that we won."""
    assert await bucket.create("claims/a/000001", b"theirs")
    s3_front.faults.append(Fault(kind, times=2))
    assert not await bucket.create("claims/a/000001", b"mine")
    assert (await bucket.get("claims/a/000001")).body == b"theirs"


async def test_a_storm_of_faults_has_one_winner_each(bucket: S3Store, s3_front: S3Front):
    """Sixteen creators under random faults: never two winners, and the winner's body is there."""
    chance = random.Random(11)
    kinds = ["broken", "broken_after", "cut", "cut_after", "slow_down", "conflict", "late"]
    for n in range(6):
        key = f"claims/storm-{n}/000001"
        s3_front.faults[:] = [
            Fault(chance.choice(kinds), prefix=key, times=chance.randint(1, 3), seconds=0.02)
            for _ in range(6)
        ]
        won = await asyncio.gather(*(bucket.create(key, b"%d" % task) for task in range(16)))
        assert won.count(True) == 1
        assert (await bucket.get(key)).body == b"%d" % won.index(True)


async def test_a_create_that_cannot_be_known_says_so(s3_front: S3Front):
    """A store that only fails is given up after the patience, and nothing is claimed about the object."""
    s3_front.faults.append(Fault("broken"))
    async with S3Store("s3://bucket", patience=0.3) as impatient:
        with pytest.raises(StoreUnavailable, match=r"cannot create 'claims/a/000001' in s3://bucket.*500"):
            await impatient.create("claims/a/000001", b"mine")


async def test_a_store_without_conditions_is_refused(bucket: S3Store, s3_front: S3Front):
    """501 to the condition is final: the message names the condition and what to use instead."""
    s3_front.faults.append(Fault("unsupported"))
    with pytest.raises(Unsupported, match=r"refused a conditional write.*NotImplemented"):
        await bucket.create("claims/a/000001", b"mine")
    assert puts(s3_front) == 1


RACER = """
import asyncio, sys
from infra.stores.s3 import S3Store

async def main(name, rounds):
    async with S3Store("s3://bucket") as store:
        print("ready", flush=True)
        sys.stdin.readline()
        for n in range(rounds):
            won = await asyncio.gather(*(
                store.create(f"claims/race-{n}/000001", f"{name}-{task}".encode()) for task in range(8)
            ))
            for task, mine in enumerate(won):
                if mine:
                    print(n, f"{name}-{task}", flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_creators_in_two_processes_have_one_winner(bucket: S3Store, s3_front: S3Front):
    """Sixteen creators in two processes, through answers lost at random: one winner each."""
    rounds = 20
    for n in range(0, rounds, 2):
        s3_front.faults.append(Fault("cut_after", prefix=f"claims/race-{n}/", times=2))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, f"p{n}", str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for n in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    lines = [line.split() for racer in racers for line in racer.communicate(timeout=300)[0].splitlines()]

    assert sorted(int(number) for number, _ in lines) == list(range(rounds))
    for number, name in lines:
        assert (await bucket.get(f"claims/race-{number}/000001")).body == name.encode()


# The other verbs ----------------------------------------------------------------------------------


async def test_reading_writing_and_listing_outlast_short_faults(bucket: S3Store, s3_front: S3Front):
    """The SDK repeats what may be repeated."""
    s3_front.faults.append(Fault("slow_down", times=1))
    s3_front.faults.append(Fault("broken", method="GET", prefix="workers/", times=1))
    for method in ("HEAD", "DELETE"):
        s3_front.faults.append(Fault("cut", method=method, times=1))
    await bucket.put("workers/w", b"1")
    assert (await bucket.get("workers/w")).body == b"1"
    assert await bucket.head("workers/w") is not None
    s3_front.faults.append(Fault("cut", method="GET", times=1))
    assert [info.key async for info in bucket.list("workers/")] == ["workers/w"]
    await bucket.delete("workers/w")
    assert await bucket.head("workers/w") is None
    assert not any(fault.times for fault in s3_front.faults)


async def test_a_body_that_breaks_off_is_read_again(bucket: S3Store, s3_front: S3Front):
    """Half a body is never handed out as a whole one."""
    await bucket.put("results/a/0.png", b"x" * 300_000)
    s3_front.faults.append(Fault("half", method="GET", times=2))
    assert len((await bucket.get("results/a/0.png")).body) == 300_000

    s3_front.faults.append(Fault("half", method="GET"))
    with pytest.raises(StoreUnavailable, match=r"the connection to .* broke"):
        await bucket.get("results/a/0.png")


async def test_a_too_large_object_leaves_the_store_usable(bucket: S3Store):
    """The connection whose body was not read does not disturb the next requests."""
    await bucket.put("requests/big.json", b"x" * 3_000_000)
    for _ in range(5):
        with pytest.raises(TooLarge):
            await bucket.get("requests/big.json", max_bytes=1000)
    assert len((await bucket.get("requests/big.json")).body) == 3_000_000


async def test_a_listing_goes_on_over_pages(bucket: S3Store, s3_front: S3Front):
    """Keys with every kind of character come once each, in order, whatever the page size."""
    s3_front.page = 3
    keys = sorted([f"requests/{c}.json" for c in "a+%&= é日/x<"] + ["requests/a"], key=str.encode)
    keys = [key for key in keys if "//" not in key]
    for key in keys:
        await bucket.put(key, b"{}")
    assert [info.key async for info in bucket.list("requests/")] == keys
    assert [info.key async for info in bucket.list("", start_after=keys[4])] == keys[5:]


async def test_folder_markers_of_a_console_are_no_objects(bucket: S3Store, s3_front: S3Front):
    """The empty `requests/` that a web console makes is passed over."""
    s3_front.markers.append("requests/")
    await bucket.put("requests/a.json", b"{}")
    assert [info.key async for info in bucket.list("requests/")] == ["requests/a.json"]


async def test_where_deletes_have_no_conditions_we_look_first(bucket: S3Store, s3_front: S3Front):
    """Servers that refuse or ignore If-Match on DELETE still do not cost a newer file its life."""
    await bucket.put("requests/a.json", b"old")
    old = await bucket.head("requests/a.json")
    assert old is not None
    await bucket.put("requests/a.json", b"new")
    for kind in ("ignore_condition", "unsupported"):
        s3_front.faults[:] = [Fault(kind, method="DELETE")]
        await bucket.delete("requests/a.json", etag=old.etag)
        new = await bucket.head("requests/a.json")
        assert new is not None
    await bucket.delete("requests/a.json", etag=new.etag)
    assert await bucket.head("requests/a.json") is None


async def test_a_prefix_is_a_store_of_its_own(bucket: S3Store, s3_front: S3Front):
    """Two prefixes in one bucket do not see each other, and the keys do not show the prefix."""
    async with S3Store("s3://bucket/team a/") as a, S3Store("s3://bucket/team b") as b:
        assert await a.create("requests/x.json", b"a")
        assert await b.create("requests/x.json", b"b")
        assert [info.key async for info in a.list("")] == ["requests/x.json"]
        assert (a.url, b.url) == ("s3://bucket/team a", "s3://bucket/team b")
        with pytest.raises(InvalidKey, match="with the store's prefix"):
            await a.put("k" * 1024, b"")
    assert (await bucket.get("team a/requests/x.json")).body == b"a"


# Settings and errors ------------------------------------------------------------------------------


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
    assert puts(s3_front) == 1


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

    async def resolving(full: str) -> object:
        return await answer(full.replace("requests/../", ""))

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
