"""The Dockerfile: what it promises about users, layers, secrets and health. `make image-check` executes it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import import_module

import pytest
from typer.testing import CliRunner

from infra.health import ALIVE
from infra.models.cards import BUILT_IN
from producer.cli import app, mount_all
from tests.deploy.dockerfile import ROOT, Instruction, Stage, environment_of, ignored_but, pairs, read

BEFORE, STAGES = read()
FINAL = list(STAGES.values())[-1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def of(stage: Stage, name: str) -> list[str]:
    return [one.text for one in stage.instructions if one.name == name]


def test_the_image_does_not_run_as_root():
    """By number, which Kubernetes can check."""
    [default] = [text.partition("=")[2] for text in of(FINAL, "ARG") if text.startswith("USER_ID=")]
    assert int(default) >= 10000
    assert FINAL.last("USER") == "${USER_ID}:${USER_ID}"


def test_a_change_of_the_code_makes_the_last_layer_only():
    """No earlier stage sees code beyond what the download of a model imports; the code is copied last."""
    copied = [text.split()[0] for stage in ("python", "dependencies") for text in of(STAGES[stage], "COPY")]
    assert copied == ["pyproject.toml"]
    *_, last = [one for one in FINAL.instructions if one.name in ("COPY", "RUN")]
    assert last == Instruction("COPY", "--from=code /opt/code /opt/code")


def test_the_models_layer_has_what_its_command_imports():
    """A module that is not copied would end the build."""
    [command] = of(STAGES["model"], "RUN")
    module = re.findall(r"-m ([\w.]+)", command)[0]
    code = f"import sys, {module}; print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)))"
    files = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()
    copied = tuple(str(ROOT / text.split()[0]) for text in of(STAGES["model"], "COPY"))
    ours = [file for file in files if file.startswith(f"{ROOT}/") and ".venv" not in file]
    assert len(ours) > 5
    assert [file for file in ours if not file.startswith(copied)] == []


def test_every_source_of_a_copy_reaches_the_build():
    """.dockerignore leaves out everything else: data, secrets, the repository's history."""
    assert set(ignored_but()) == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE"),
        *("consumer", "producer", "schemas", "training", "infra"),
    }
    for stage in STAGES.values():
        for text in of(stage, "COPY"):
            if not text.startswith("--from="):
                *sources, _ = text.split()
                for source in sources:
                    assert source == "." or source.split("/")[0] in ignored_but()
                    assert (ROOT / source).exists()


def test_no_secret_is_an_argument_or_a_variable():
    names = [text.partition("=")[0] for stage in STAGES.values() for text in of(stage, "ARG")]
    names += environment_of(FINAL, STAGES, {})
    assert not [name for name in names if re.search(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL", name)]


def test_the_commands_are_there():
    """Entry point, default command and health check name what this project has."""
    mount_all()
    assert FINAL.command("ENTRYPOINT") == ["tini", "--", "dreamdrop"]
    assert "dreamdrop" in PROJECT["scripts"]
    words = FINAL.command("CMD")
    help = CliRunner().invoke(app, [words[0], "--help"])
    assert help.exit_code == 0
    assert all(word in help.output for word in words[1:])
    python, safe, _, module = FINAL.command("HEALTHCHECK")
    assert (python, safe) == ("python", "-P")
    assert callable(import_module(module).main)


def test_the_health_check_and_the_commands_agree_on_the_ports():
    """Both read them from the image's variables, and the image exposes them."""
    environment = environment_of(FINAL, STAGES, {})
    assert {environment[name] for name in ALIVE} == set(FINAL.last("EXPOSE").split())
    assert "--port" not in FINAL.command("CMD")


def test_what_is_written_goes_below_data_and_tmp():
    environment = environment_of(FINAL, STAGES, {})
    for name in ("HOME", "XDG_CACHE_HOME", "DREAMDROP_STORE", "TORCHINDUCTOR_CACHE_DIR"):
        assert environment[name].startswith("/data"), name
    assert (
        environment["DREAMDROP_BAKED_MODELS"]
        == environment_of(STAGES["model"], STAGES, {})["DREAMDROP_BAKED_MODELS"]
    )


@pytest.mark.parametrize("argument", ["MODEL", "EXTRAS", "VERSION"])
def test_defaults_are_those_of_the_project(argument: str):
    defaults = {
        name: value
        for stage in STAGES.values()
        for name, _, value in (text.partition("=") for text in of(stage, "ARG"))
    }
    known = {
        "MODEL": {card.name for card in BUILT_IN},
        "EXTRAS": {
            ",".join(e for e in ("consumer", "web", "training") if e in PROJECT["optional-dependencies"])
        },
        "VERSION": {PROJECT["version"]},
    }
    assert defaults[argument] in known[argument]


def test_the_labels_say_what_it_is():
    labels = pairs(FINAL.last("LABEL"), {"VERSION": "1.2.3", "REVISION": "abc"})
    assert labels["org.opencontainers.image.version"] == "1.2.3"
    assert labels["org.opencontainers.image.revision"] == "abc"
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]
