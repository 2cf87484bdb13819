"""The Kubernetes files: rendered by kustomize, checked against the schemas and against the code's own numbers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from consumer.worker import _LAST_ANNOUNCEMENTS, _LAST_SWEEP, _LAST_WRITES, WorkerSettings
from infra.claims.claim import Timing
from infra.queues.setup_documents import VISIBILITY
from training.cli import trainer as train_app
from training.lease.child import _EXIT_WAIT
from training.lease.trainer import TrainerSettings

FOLDER = Path(__file__).parents[2] / "infra" / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
TRAINER = "# components: [../../components/trainer]"  # the line of each overlay that adds a trainer
AFTER_GRACE = _LAST_ANNOUNCEMENTS + _LAST_SWEEP + _LAST_WRITES  # seconds
OLDEST, NEWEST = "1.30", "1.37"  # versions of Kubernetes that the files must fit

#: The fields of KEDA's objects, as its CRDs (keda.sh/v1alpha1, KEDA 2.14 to 2.18) name them; what is required first.
SCALED_OBJECT = {
    "scaleTargetRef": {"name", "apiVersion", "kind", "envSourceContainerName"},
    "triggers": {"type", "metadata", "name", "metricType", "useCachedMetrics", "authenticationRef"},
    "pollingInterval": int,
    "cooldownPeriod": int,
    "initialCooldownPeriod": int,
    "idleReplicaCount": int,
    "minReplicaCount": int,
    "maxReplicaCount": int,
    "fallback": {"failureThreshold", "replicas", "behavior"},
    "advanced": {"horizontalPodAutoscalerConfig", "restoreToOriginalReplicaCount", "scalingModifiers"},
}
SQS_TRIGGER = {
    "queueURL", "queueURLFromEnv", "queueLength", "activationQueueLength", "awsRegion", "awsEndpoint",
    "scaleOnInFlight", "scaleOnDelayed",
}  # fmt: skip


def rendered(overlay: str, folder: Path = FOLDER) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(folder / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_trainer(overlay: str, folder: Path) -> str:
    """What an overlay renders to when an operator takes the line of the trainer into use."""
    shutil.copytree(FOLDER, folder)
    path = folder / "overlays" / overlay / "kustomization.yaml"
    assert TRAINER in path.read_text()
    path.write_text(path.read_text().replace(TRAINER, TRAINER.removeprefix("# ")))
    return rendered(overlay, folder)


@pytest.fixture(scope="module", params=[*OVERLAYS, *(f"{name} with a trainer" for name in OVERLAYS)])
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What an overlay renders to, each in turn, without and with a trainer."""
    overlay, _, more = request.param.partition(" ")
    return with_trainer(overlay, tmp_path_factory.mktemp("k") / "files") if more else rendered(overlay)


def objects(text: str, kind: str) -> dict[str, Any]:
    documents = [document for document in yaml.safe_load_all(text) if document]
    return {one["metadata"]["name"]: one for one in documents if one["kind"] == kind}


def pod(text: str, name: str) -> Any:
    return objects(text, "Deployment")[name]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_fits_its_schema(text: str, version: str, tmp_path: Path):
    """No unknown field and no wrong type, in the oldest and the newest version."""
    tool = Path(os.environ.get("DEPLOY_CHECK", "/nowhere"), "bin", "kubernetes-validate")
    if not tool.exists():
        pytest.skip("kubernetes-validate is not installed; `make deploy-check` has it")
    documents = [d for d in yaml.safe_load_all(text) if d and not d["apiVersion"].startswith("keda.sh/")]
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    done = subprocess.run(
        [tool, "--strict", "-k", version, path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed ") == len(documents) >= 10


def test_kedas_objects_have_the_fields_that_keda_knows():
    """A misspelt field would be ignored or refused; values of a trigger are texts."""
    text = rendered("aws")
    [scaler] = objects(text, "ScaledObject").values()
    spec = scaler["spec"]
    assert scaler["apiVersion"] == "keda.sh/v1alpha1"
    assert spec.keys() <= SCALED_OBJECT.keys()
    assert {"scaleTargetRef", "triggers"} <= spec.keys()
    for name, kind in SCALED_OBJECT.items():
        for value in [spec[name]] if name in spec else []:
            if kind is int:
                assert type(value) is int
            else:
                for part in value if isinstance(value, list) else [value]:
                    assert part.keys() <= kind, name
    [trigger] = spec["triggers"]
    assert trigger["type"] == "aws-sqs-queue"
    assert trigger["metadata"].keys() <= SQS_TRIGGER
    assert {type(value) for value in trigger["metadata"].values()} == {str}
    [login] = objects(text, "TriggerAuthentication").values()
    assert trigger["authenticationRef"] == {"name": login["metadata"]["name"]}
    assert login["spec"] == {"podIdentity": {"provider": "aws"}}


def test_keda_follows_the_queue_of_the_workers_and_counts_what_is_in_hand():
    """From none to the most and back; a message stays in flight while its request is drawn."""
    text = rendered("aws")
    [scaler] = objects(text, "ScaledObject").values()
    spec, [trigger] = scaler["spec"], scaler["spec"]["triggers"]
    [settings] = [one["data"] for one in objects(text, "ConfigMap").values()]
    assert trigger["metadata"]["queueURL"] == settings["DREAMDROP_QUEUE"]
    assert trigger["metadata"]["awsRegion"] == settings["AWS_DEFAULT_REGION"]
    assert trigger["metadata"]["scaleOnInFlight"] == "true"
    assert (spec["minReplicaCount"], spec["scaleTargetRef"]) == (0, {"name": "worker"})
    assert (
        spec["cooldownPeriod"] > VISIBILITY
    )  # a message of a dead worker is shown again before the last one goes
    assert "replicas" not in objects(text, "Deployment")["worker"]["spec"]  # KEDA says how many
    assert objects(rendered("polling"), "Deployment")["worker"]["spec"]["replicas"] == 1


def test_a_worker_has_time_to_drain_and_to_load(text: str):
    """The pod's grace is longer than the worker's and what follows it; the probes ask what the worker answers."""
    spec = pod(text, "worker")
    [worker] = spec["containers"]
    environment = {entry["name"]: entry["value"] for entry in worker["env"]}
    assert float(environment["DREAMDROP_GRACE"]) == WorkerSettings().grace
    assert (
        spec["terminationGracePeriodSeconds"] > WorkerSettings().grace + AFTER_GRACE + 10
    )  # children take seconds
    paths = {kind: worker[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: get["path"] for kind, get in paths.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {get["port"] for get in paths.values()} == {"metrics"}
    assert worker["ports"] == [{"name": "metrics", "containerPort": 9100}]
    assert (environment["DREAMDROP_METRICS_PORT"], environment["DREAMDROP_METRICS_HOST"]) == (
        "9100",
        "0.0.0.0",
    )
    live = worker["livenessProbe"]
    assert (
        live["periodSeconds"] * live["failureThreshold"] > 2 * Timing().lease
    )  # others take over before a restart
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["args"] == ["worker"]


def test_a_trainer_has_time_to_save_a_checkpoint(text: str):
    """It is there only where it was asked for; its probes, its account and its folder are those of the code."""
    if "trainer" not in objects(text, "Deployment"):
        assert "trainer" not in text
        return
    spec = pod(text, "trainer")
    [trainer] = spec["containers"]
    environment = {entry["name"]: entry["value"] for entry in trainer["env"]}
    default = next(p.default for p in get_command(train_app).params if p.name == "grace")
    assert float(environment["DREAMDROP_GRACE"]) == default == TrainerSettings().grace
    after = _EXIT_WAIT + Timing().beat  # the child is killed, and the last heartbeat goes
    assert spec["terminationGracePeriodSeconds"] > TrainerSettings().grace + after + 10
    assert trainer["args"] == ["trainer"]
    assert spec["serviceAccountName"] == "dreamdrop-trainer" in objects(text, "ServiceAccount")
    paths = [trainer[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert [get["path"] for get in paths] == ["/healthz", "/healthz", "/readyz"]
    assert {get["port"] for get in paths} == {"metrics"}
    assert trainer["ports"] == [
        {"name": "metrics", "containerPort": int(environment["DREAMDROP_METRICS_PORT"])}
    ]
    live = trainer["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] > 2 * Timing().lease
    assert environment["DREAMDROP_WORK"].startswith("/data/")  # /tmp is small
    assert trainer["image"] == pod(text, "worker")["containers"][0]["image"]
    assert trainer["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_pods_keep_to_the_restricted_profile(text: str):
    """Every rule of the profile, and more: a read-only root, a number as user, no token of the cluster."""
    [namespace] = objects(text, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name in objects(text, "Deployment"):
        spec = pod(text, name)
        context = spec["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        for container in spec["containers"]:
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False
            assert inner["readOnlyRootFilesystem"] is True
            assert inner["capabilities"] == {"drop": ["ALL"]}
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert mounts.keys() == {"/data", "/tmp"}
            assert {v["name"] for v in spec["volumes"] if "emptyDir" in v} == set(mounts.values())
            assert all(port["containerPort"] >= 1024 for port in container["ports"])


def test_nothing_reaches_a_pod_but_what_is_named(text: str):
    """Metrics for the monitoring, HTTP for callers; the node's metadata service is out of reach."""
    policies = objects(text, "NetworkPolicy")
    nothing = policies["nothing-else"]["spec"]
    assert (nothing["podSelector"], set(nothing["policyTypes"])) == ({}, {"Ingress", "Egress"})
    assert not nothing.keys() & {"ingress", "egress"}
    opened = {
        port["port"]
        for policy in policies.values()
        for rule in policy["spec"].get("ingress", ())
        for port in rule["ports"]
    }
    assert opened == {9100, 8080}
    blocks = [
        to["ipBlock"]
        for policy in policies.values()
        for rule in policy["spec"].get("egress", ())
        for to in rule["to"]
        if "ipBlock" in to
    ]
    wide = [block for block in blocks if block["cidr"] == "0.0.0.0/0"]
    assert [block["except"] for block in wide] == [["169.254.0.0/16"]]
    assert {block["cidr"] for block in blocks} <= {"0.0.0.0/0", "169.254.170.23/32"}


def test_selectors_find_their_pods(text: str):
    """A service, a budget and a policy that select no pod do nothing, without a word."""
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in objects(text, "Deployment").values()]
    kinds = [*objects(text, "PodDisruptionBudget").values(), *objects(text, "NetworkPolicy").values()]
    wanted = [
        (one["spec"].get("selector") or one["spec"].get("podSelector") or {}).get("matchLabels", {})
        for one in kinds
    ]
    wanted += [one["spec"]["selector"] for one in objects(text, "Service").values()]
    for want in wanted:
        assert any(want.items() <= have.items() for have in labels), want
    budgets = objects(text, "PodDisruptionBudget")
    assert budgets.keys() == objects(text, "Deployment").keys()
    assert budgets["worker"]["spec"]["maxUnavailable"] == 1
    [settings] = objects(text, "ConfigMap")
    for name in objects(text, "Deployment"):
        [container] = pod(text, name)["containers"]
        assert {"configMapRef": {"name": settings}} in container["envFrom"]
