"""Every metric is in the documentation; dashboard, alert rules and documentation name none that does not exist."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from consumer import metrics
from consumer.gauges import Gauges
from infra.claims.claims import Timing
from infra.claims.trainings import TrainingStore
from infra.metrics.backlog import Backlog
from infra.metrics.calls import Calls
from infra.models.cache import ModelCache
from infra.queues.message import QueueFacts
from infra.stores.memory import MemoryStore
from producer.web.metrics import Metrics
from tests.worker_inside import make_worker
from training.lease.base_models import BaseModels
from training.lease.gauges import Gauges as TrainerGauges
from training.lease.inputs import Inputs
from training.lease.trainer import Trainer, TrainerSettings, make_claims

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "infra/deploy/grafana/dashboard.json"
ALERTS = ROOT / "infra/deploy/prometheus/alerts.yaml"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "info": ("_info",)}


class Queue:
    async def facts(self) -> QueueFacts:
        return QueueFacts(30.0, None, 1, 1)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """Every metric of the worker, the facade and the trainer, by name."""
    return asyncio.run(collected(tmp_path_factory.mktemp("cache")))


async def collected(cache: Path) -> dict[str, Metric]:
    store = MemoryStore()
    backlog = Backlog(store, [Queue()])
    await backlog.refresh()
    worker = Gauges(make_worker(store), backlog, ModelCache(cache))
    calls = CollectorRegistry()
    Calls(calls)
    view = TrainingStore(store)
    trainer = Trainer(
        make_claims(view, "t", Timing(), str),
        view,
        Inputs(store, BaseModels.of(())),
        TrainerSettings(),
        {},
    )
    sources: list[Iterable[Metric]] = [
        metrics.REGISTRY.collect(),
        worker.collect(),
        backlog.collect(),
        calls.collect(),
        Metrics().registry.collect(),
        TrainerGauges(trainer).collect(),
    ]
    return {family.name: family for source in sources for family in source}


def samples_of(families: dict[str, Metric]) -> set[str]:
    """The names under which Prometheus knows them."""
    return {name + suffix for name, family in families.items() for suffix in SUFFIXES.get(family.type, ("",))}


def named_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:dreamdrop|process)_[a-z_]+[a-z]\b", text))


def test_every_metric_is_documented_with_its_type(families: dict[str, Metric]):
    """A row for each, and no other rows."""
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(dreamdrop_\w+)` \| (\w+) \|", page, re.MULTILINE))
    wanted = {
        name
        + ("_total" if family.type == "counter" else "_info" if family.type == "info" else ""): family.type
        for name, family in families.items()
        if name.startswith("dreamdrop_")
    }
    assert rows == wanted


def test_the_dashboard_shows_metrics_that_exist(families: dict[str, Metric]):
    """Every expression, and the variables' queries; nearly every metric is on it."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    texts += [variable.get("definition", "") for variable in dashboard["templating"]["list"]]
    named = set().union(*map(named_in, texts))
    assert len(named) > 30
    assert named - samples_of(families) == set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(ids)) == len(set(places)) == len(ids)


def test_the_alerts_watch_metrics_that_exist(families: dict[str, Metric]):
    """Each rule has an expression, a severity and a sentence; its labels' values exist too."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        named = named_in(rule["expr"])
        assert named, rule
        assert named - samples_of(families) == set()
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["expr"].count("(") == rule["expr"].count(")")
