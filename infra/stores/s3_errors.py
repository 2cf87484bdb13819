"""Errors of a bucket, as messages that say what to do.

The AWS library's messages are not repeated: they may hold URLs with passwords in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore import exceptions as boto

from infra.aws import code_of, reason_of, shown, status_of
from schemas.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

_BY_CODE: Mapping[str, str] = {
    "AccessDenied": "access denied: give this identity s3:GetObject, s3:PutObject, s3:DeleteObject and "
    "s3:ListBucket (without the last, a missing object is denied, too)",
    "AllAccessDisabled": "the account's access is disabled: check its billing and status",
    "InvalidAccessKeyId": "the access key is unknown there: check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL_S3",
    "SignatureDoesNotMatch": "the signature is refused: check AWS_SECRET_ACCESS_KEY and the region",
    "ExpiredToken": "the session has expired: sign in again",
    "InvalidToken": "the session token is refused: check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it (NTP)",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "SlowDown": "the store asks for fewer requests; the call will be tried again later",
    "QuotaExceeded": "the store is full: free some space or raise the quota",
}


def translated(error: Exception, what: str, bucket: str, endpoint: str) -> StoreUnavailable:
    """Our error for one of the AWS library's: what failed, why, and what to do."""
    if isinstance(error, boto.ClientError):
        reason = _answered(error, bucket, shown(endpoint))
    else:
        reason = reason_of(error, shown(endpoint), "AWS_ENDPOINT_URL_S3")
    return StoreUnavailable(f"{what}: {reason}")


def _answered(error: boto.ClientError, bucket: str, endpoint: str) -> str:
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket!r} at {endpoint}: create it, or correct the name"
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status == 403:
        return _BY_CODE["AccessDenied"]
    return f"{endpoint} answered {status} {code}; the call will be tried again later"
