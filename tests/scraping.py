"""A real worker with a port for metrics, and what its metrics say, read by Prometheus' own parser."""

from __future__ import annotations

import contextlib
import queue
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.worker_process import worker


class Scraped:
    """What `/metrics` said: a value by sample name and labels."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = [sample for family in self.families.values() for sample in family.samples]

    def total(self, name: str) -> float:
        """Of all its samples; 0 when there is none."""
        return sum(s.value for s in self._samples if s.name == name)

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples with these labels; an error when there is none."""
        found = [s.value for s in self._samples if s.name == name and labels.items() <= s.labels.items()]
        assert found, f"no sample {name} {labels}"
        return sum(found)

    def values(self, label: str) -> set[str]:
        return {s.labels[label] for s in self._samples if label in s.labels}


class Watched:
    """A worker's port for metrics, and its log lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        while not (found := re.search(r"url=(\S+)/metrics", self.lines.get(timeout=120))):
            pass
        self.url = found[1]

    def _listen(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):  # closed
            for line in self.process.stderr:
                self.lines.put(line)

    def scrape(self) -> Scraped:
        return Scraped(httpx.get(f"{self.url}/metrics", timeout=60).text)

    def after(self, ends: int) -> Scraped:
        """The figures once so many results are counted, which is a moment after they can be read."""
        until = time.monotonic() + 120
        while (figures := self.scrape()).total("dreamdrop_requests_ended_total") < ends:
            assert time.monotonic() < until
            time.sleep(0.05)
        return figures

    def until(self, path: str, status: int) -> str:
        """Wait until a probe answers with this status; returns its text."""
        ends = time.monotonic() + 120
        while (answer := httpx.get(self.url + path, timeout=60)).status_code != status:
            assert time.monotonic() < ends, answer.text
            time.sleep(0.05)
        return answer.text


@contextlib.contextmanager
def watched(store: Path | str, *options: str, **null: object) -> Iterator[Watched]:
    with worker(store, "--metrics-port", "0", *options, null=null) as process:
        yield Watched(process)
