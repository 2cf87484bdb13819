"""compose.yaml: structure, wiring, and the settings that .env.example explains."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from infra.health import DEFAULTS
from producer.cli import app, mount_all
from tests.deploy.dockerfile import ROOT, environment_of, read
from tests.deploy.env_example import text, variables
from training.lease.trainer import TrainerSettings

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = ("worker-cpu", "worker-gpu")
TRAINERS = ("trainer-cpu", "trainer-gpu")
OURS = ("setup", *WORKERS, *TRAINERS, "web")
#: What the compose specification knows of a service and this project uses; a typo is not in it.
KNOWN = {
    *(
        "image",
        "build",
        "command",
        "environment",
        "env_file",
        "ports",
        "volumes",
        "depends_on",
        "healthcheck",
    ),
    *("profiles", "restart", "read_only", "tmpfs", "cap_drop", "security_opt", "stop_grace_period", "deploy"),
}
VARIABLE = re.compile(r"\$\{(\w+)(?::?-[^}]*)?\}")


def test_the_example_explains_every_setting_of_the_code():
    """It is written by `python -m tests.deploy.env_example`, from the options of all commands."""
    assert (ROOT / ".env.example").read_text() == text(), (
        "run: python -m tests.deploy.env_example > .env.example"
    )


def test_no_setting_of_the_code_is_left_out():
    """Every variable that any source names is explained, those that are no option included."""
    named: set[str] = set()
    for package in ("consumer", "infra", "producer", "schemas", "training"):
        for file in (ROOT / package).rglob("*.py"):
            named |= set(re.findall(r"\bDREAMDROP_[A-Z_0-9]*[A-Z]\b", file.read_text()))
    explained = set(
        re.findall(r"^(?:# )?(DREAMDROP_\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    )
    assert named - explained == set()


def test_every_variable_of_compose_is_in_the_example():
    source = (ROOT / "compose.yaml").read_text()
    explained = re.findall(r"^(?:# )?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert set(VARIABLE.findall(source)) - set(explained) == set()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_only_what_compose_knows(name: str):
    service = SERVICES[name]
    assert service.keys() <= KNOWN
    for volume in service.get("volumes", ()):
        assert volume.partition(":")[0] in COMPOSE["volumes"]
    for other, condition in service.get("depends_on", {}).items():
        assert condition["condition"] in ("service_healthy", "service_completed_successfully")
        if condition["condition"] == "service_healthy":
            assert SERVICES[other]["healthcheck"]["test"]
        # What a service waits for is started in each of its profiles.
        others = SERVICES[other].get("profiles", service.get("profiles", ()))
        assert set(service.get("profiles", ())) <= set(others)


def test_images_are_pinned():
    """By a tag that is a version; ours are built from this folder."""
    for name, service in SERVICES.items():
        if name in OURS:
            assert service["build"]["context"] == "."
        else:
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+", service["image"]), service["image"]


@pytest.mark.parametrize("name", OURS)
def test_our_services_have_no_more_rights_than_they_need(name: str):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "user" not in service  # the image's own, which is not root


@pytest.mark.parametrize("name", OURS)
def test_a_command_is_one_of_dreamdrop(name: str):
    """With options that the command has."""
    mount_all()
    words = SERVICES[name]["command"]
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, shlex.join(words)
    for option in (word for word in words if word.startswith("--")):
        assert option in done.output


def test_build_arguments_are_those_of_the_dockerfile():
    before, stages = read()
    known = {
        *before,
        *(o.text.partition("=")[0] for s in stages.values() for o in s.instructions if o.name == "ARG"),
    }
    for name in OURS:
        assert SERVICES[name]["build"]["args"].keys() <= known


def test_everything_is_published_on_loopback_only():
    """The store takes any credentials, and the web server has no keys unless they are set."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    for port in ports:
        assert re.match(r"(\$\{\w+:-)?127\.0\.0\.1:", port), port


def test_a_worker_has_longer_to_stop_than_to_drain():
    grace = float(variables()["DREAMDROP_GRACE"][1].default)
    for name in WORKERS:
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > grace + 10


def test_a_trainer_has_longer_to_stop_than_to_save_a_checkpoint():
    """Its own grace holds, also where .env gives the worker's."""
    for name in TRAINERS:
        grace = float(SERVICES[name]["environment"]["DREAMDROP_GRACE"])
        assert grace == TrainerSettings().grace
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > grace + 20
        [volume] = SERVICES[name]["volumes"]
        assert SERVICES[name]["environment"]["DREAMDROP_WORK"].startswith(volume.partition(":")[2])


def test_the_health_check_looks_where_each_service_listens():
    """The image's own check reads the variables of image and service."""
    _, stages = read()
    image = environment_of(list(stages.values())[-1], stages, {})
    web = image | SERVICES["web"]["environment"]
    assert SERVICES["web"]["ports"][0].endswith(f":{web['DREAMDROP_PORT']}")
    for name in (*WORKERS, *TRAINERS):
        assert (image | SERVICES[name]["environment"]).keys() >= DEFAULTS.keys()
        assert "healthcheck" not in SERVICES[name]
