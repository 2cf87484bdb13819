"""API keys: who is calling, which ids they may see, and how many synchronous calls they may make at once.

A key is 256 random bits, so a plain SHA-256 protects it as well as a slow hash would. The settings hold one
line per key, made by `dreamdrop keys new`:

    alice=<SHA-256 in hex>[;prefix=team-a][;room=20]

A caller with a prefix has a namespace of its own: what it calls `cat` is `team-a.cat` in the store, and it sees
no other ids. Its requests may refer to pictures under `uploads/team-a/` only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.errors import DreamError, Rejected
from schemas.layout import UPLOADS
from schemas.manifest_parts import pictures_in

_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # no dot: a dot ends it
_SHORTEST_TOKEN = 24  # characters
_KEY_PREFIX = "dd_"  # lets secret scanners find leaked keys


class BadKey(DreamError):
    """A key in the settings, or the name or prefix of a new one, is not valid."""


@dataclass(frozen=True, slots=True)
class Key:
    """One caller, as the settings name it."""

    name: str
    hash: str = ""  # SHA-256 of the key, in hex
    prefix: str = ""  # its ids start with this and a dot; "" for all ids
    room: int = 0  # synchronous calls at once; 0 for no limit of its own

    def id(self, id: str) -> str:
        """The full id in the store of what the caller calls `id`; a full id stays as it is."""
        return id if self.sees(id) else self.id_prefix + id

    @property
    def id_prefix(self) -> str:
        """What all its ids start with."""
        return f"{self.prefix}." if self.prefix else ""

    def sees(self, id: str) -> bool:
        return id.startswith(self.id_prefix)

    def check_pictures(self, document: Mapping[str, Any]) -> None:
        """Refuse a manifest that refers to stored pictures outside the caller's own folder. Raises `Rejected`."""
        for field, value in pictures_in(document).items():
            self.check_stored(field, value)

    def check_stored(self, field: str, value: object, *, is_key: bool = False) -> None:
        """Refuse a value that refers to a stored file outside the caller's own folder. Raises `Rejected`.

        Args:
            is_key: it is a key, and never base64.
        """
        if not self.prefix or not isinstance(value, str):
            return
        if not is_key and (value.startswith("data:") or not ("." in value or "://" in value)):
            return  # base64 has neither
        own = f"{UPLOADS}{self.prefix}/"
        if not value.startswith(own) or ".." in value:
            kind = "file" if is_key else "picture"
            rest = "those only" if is_key else "those only, or base64"
            raise Rejected.of_field(field, f"refers to a {kind} outside {own}; your key may use {rest}")


ANONYMOUS = Key("anonymous")  # every caller of a server without keys


def new_key(name: str, *, prefix: str = "", room: int = 0) -> tuple[str, str]:
    """A new key, and its line for the settings. Raises `BadKey`."""
    if not _NAME.fullmatch(name):
        raise BadKey(f"the name {name[:64]!r} should be 1 to 64 letters, digits, '.', '_' and '-'")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise BadKey(
            f"the prefix {prefix[:40]!r} should be 1 to 40 letters, digits, '_' and '-', and start with a letter or "
            "digit"
        )
    key = _KEY_PREFIX + secrets.token_urlsafe(32)
    line = f"{name}={hashlib.sha256(key.encode()).hexdigest()}"
    line += f";prefix={prefix}" if prefix else ""
    line += f";room={room}" if room else ""
    return key, line


def read_keys(text: str) -> tuple[Key, ...]:
    """The keys in a setting, separated by white space or commas. Raises `BadKey`, which never repeats the text."""
    keys = tuple(_read(line) for line in re.split(r"[\s,]+", text) if line)
    names = [key.name for key in keys]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise BadKey(
            f"DREAMDROP_API_KEYS has {', '.join(sorted(duplicates))} twice: give each key its own name"
        )
    return keys


def read_event_tokens(text: str) -> tuple[Key, ...]:
    """The tokens of object stores in a setting, separated by white space. Raises `BadKey`, without the text."""
    tokens = text.split()
    if any(len(token) < _SHORTEST_TOKEN or not token.isascii() for token in tokens):
        raise BadKey(
            f"DREAMDROP_EVENTS_TOKEN should be at least {_SHORTEST_TOKEN} ASCII characters that nobody can guess: "
            "make one with `openssl rand -hex 32`"
        )
    return tuple(Key("events", hashlib.sha256(token.encode()).hexdigest()) for token in tokens)


def _read(line: str) -> Key:
    head, *options = line.split(";")
    name, _, digest = head.partition("=")
    if not _NAME.fullmatch(name) or not _HASH.fullmatch(digest):
        raise BadKey(
            "DREAMDROP_API_KEYS has an entry that is not <name>=<SHA-256 in hex>: "
            "make a key with `dreamdrop keys new NAME` and set the line that it prints"
        )
    values = dict(option.partition("=")[::2] for option in options)
    prefix, room = values.pop("prefix", ""), values.pop("room", "0")
    if values or (prefix and not _PREFIX.fullmatch(prefix)) or not room.isdecimal():
        raise BadKey(
            f"DREAMDROP_API_KEYS: {name} may have the options ;prefix=<letters, digits, _ and -> and "
            ";room=<calls at once> only"
        )
    return Key(name, digest, prefix, int(room))


def key_in(headers: Mapping[str, str]) -> str | None:
    """The key in a request's headers: a bearer token, `X-API-Key`, or a Basic password."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return headers.get("x-api-key")


def caller_with(key: str | None, keys: Iterable[Key]) -> Key | None:
    """The caller that a key belongs to. Every key is compared, in constant time."""
    digest = hashlib.sha256((key or "").encode("utf-8", "surrogatepass")).hexdigest()
    caller = None
    for known in keys:
        if hmac.compare_digest(digest, known.hash):
            caller = known
    return caller
