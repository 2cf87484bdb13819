"""Limits by environment: one set of variables for everybody."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from consumer.cli import worker
from infra.limits_env import limits_from
from producer import Client
from schemas.errors import DreamError, Rejected
from schemas.limits import Limits


def test_without_variables_the_limits_are_the_safe_ones():
    """Also with empty ones, as compose files make them."""
    assert limits_from({}) == limits_from({"DREAMDROP_MAX_STEPS": ""}) == Limits()


def test_a_variable_changes_its_limit_alone():
    """Megabytes are counted in bytes."""
    found = limits_from({"DREAMDROP_MAX_STEPS": "500", "DREAMDROP_MAX_BODY_MB": "2"})
    assert (found.max_steps, found.max_body_bytes, found.max_side) == (500, 2 << 20, Limits().max_side)


def test_a_worker_reads_the_same_variables():
    """Its options stand for the same variables, with the same defaults; the help cannot drift from the limits."""
    options = {}
    for parameter in inspect.signature(worker, eval_str=True).parameters.values():
        for fact in getattr(parameter.annotation, "__metadata__", ()):
            options[fact.envvar] = parameter.default
    limits = {
        "STEPS": "max_steps",
        "SIDE": "max_side",
        "IMAGES": "max_images",
        "NATIVE_AREAS": "max_native_areas",
    }
    for name, limit in limits.items():
        assert options[f"DREAMDROP_MAX_{name}"] == getattr(Limits(), limit)
        assert getattr(limits_from({f"DREAMDROP_MAX_{name}": "9"}), limit) == 9
    assert options["DREAMDROP_MAX_BODY_MB"] << 20 == Limits().max_body_bytes


@pytest.mark.parametrize("text", ["many", "-1", "0", "1.5"])
def test_what_is_no_number_is_named(text: str):
    """The variable, what it holds, and what to do."""
    with pytest.raises(DreamError, match=r"DREAMDROP_MAX_STEPS is .*whole number"):
        limits_from({"DREAMDROP_MAX_STEPS": text})


def test_a_client_asks_for_what_its_workers_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """More steps than the default, once the environment says so."""
    request = {"prompt": "x", "steps": 400}
    with Client(tmp_path) as client, pytest.raises(Rejected, match="at most 150"):
        client.submit(request)
    monkeypatch.setenv("DREAMDROP_MAX_STEPS", "400")
    with Client(tmp_path) as client:
        assert client.submit(request).id
