"""The OpenAPI document is right: valid and invalid calls made from it get only the responses that it lists."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from producer.web import openapi
from producer.web.api_keys import new_key, read_keys
from producer.web.app import create_app
from producer.web.settings import FacadeSettings
from schemas.limits import Limits
from tests.producer.facade import facade, ready, worker


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A facade with a worker; short waits and small pictures, for there will be thousands."""
    place = tmp_path_factory.mktemp("schema") / "store"
    small = Limits(max_side=128, max_pixels=128 * 128, max_steps=4, max_images=2)
    with (
        worker(place, "--max-side", "128", "--max-steps", "4", "--max-images", "2"),
        facade(place, limits=small, wait=20.0) as listening,
    ):
        ready(listening)
        yield listening


def operations() -> list[schemathesis.schemas.APIOperation]:
    """Every call that the document describes."""
    document = schemathesis.openapi.from_dict(create_app(FacadeSettings("memory://schema")).openapi())
    return [operation.ok() for operation in document.get_all_operations()]


def test_the_document_names_everything_once_and_in_words():
    """Generators make classes and functions from these names; error bodies are written down once."""
    document = create_app(FacadeSettings("memory://schema")).openapi()
    calls = [call for path in document["paths"].values() for call in path.values()]
    names = [call["operationId"] for call in calls]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name) for name in names), names
    assert not [name for name in document["components"]["schemas"] if "__" in name]
    for call in calls:
        for status, answer in call["responses"].items():
            for content in answer.get("content", {}).values():
                assert int(status) < 400 or "$ref" in content["schema"], (call["operationId"], status)
    assert {call["tags"][0] for call in calls} == {tag["name"] for tag in document["tags"]}


def test_the_document_says_how_a_key_is_sent():
    """Only where the server has keys, and not for the calls that need none."""
    key = read_keys(new_key("alice")[1])
    document = create_app(FacadeSettings("memory://schema", keys=key)).openapi()
    assert {scheme["type"] for scheme in document["components"]["securitySchemes"].values()} == {
        "http",
        "apiKey",
    }
    assert document["security"]
    assert document["paths"]["/readyz"]["get"]["security"] == []
    assert "security" not in create_app(FacadeSettings("memory://schema")).openapi()


@pytest.mark.parametrize("operation", operations(), ids=lambda one: one.label)
def test_whatever_is_called_the_server_answers_as_it_says(
    address: str, operation: schemathesis.schemas.APIOperation
):
    """No 5xx, and no status or content type that the document does not know."""

    @given(case=operation.as_strategy())
    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def call(case: schemathesis.Case) -> None:
        answer = case.call(base_url=address, timeout=240)
        checks = [not_a_server_error, status_code_conformance, content_type_conformance]
        case.validate_response(answer, checks=checks)

    call()


@pytest.mark.parametrize("name", sorted(openapi.examples()))
def test_every_example_of_the_document_can_be_sent_as_it_is(address: str, name: str):
    """What the documentation page offers to try out works."""
    body = openapi.examples()[name]["value"] | {"steps": 2}
    answer = httpx.post(f"{address}/generate/", json=body, timeout=240)
    assert answer.status_code == 200, answer.text
    assert answer.json()["images"]
