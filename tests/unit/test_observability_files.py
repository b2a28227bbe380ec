"""The dashboard and the alert rules: every query of theirs parses, and uses metrics and labels that are exported."""

import json
import re
import subprocess
import sys
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mailkeep.cli import app
from mailkeep.telemetry.metrics import METRICS

FILES = Path(__file__).parents[2] / "deploy" / "observability"
ALERTS = FILES / "alerts.yaml"
DASHBOARD = FILES / "grafana-dashboard.json"
SCRAPED = {"instance", "job"}
"""Labels that Prometheus itself adds."""
GRAFANA = {"$__rate_interval": "5m"}

EXPORT = """
from opentelemetry import metrics as api
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, generate_latest

api.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
from mailkeep.telemetry import metrics

for metric in metrics.METRICS:
    values = tuple("x" for _ in metric.attributes)
    if metric.kind == "counter":
        metrics.count(metric, [values])
    elif metric.kind == "gauge":
        metrics.observe(metric, lambda values=values: {values: 1.0})
    else:
        metrics.observe_send(1.0, route="x", phase="x")
print(generate_latest(REGISTRY).decode())
"""


@pytest.fixture(scope="module")
def exported():
    """Every series that the real exporter shows, with its labels; in a process of its own: there is one provider each."""
    shown = subprocess.run([sys.executable, "-c", EXPORT], capture_output=True, text=True, check=True).stdout
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(shown)
        for sample in family.samples
    }


def rules():
    """Return the alert rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def queries():
    """Return each query with where it stands."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(rule["alert"], rule["expr"]) for rule in rules()] + [
        (panel["title"], target["expr"]) for panel in panels for target in panel["targets"]
    ]


def selectors(query):
    """Return the parts of a parsed query that select series, as (metric, labels that must match)."""
    for variable, value in GRAFANA.items():
        query = query.replace(variable, value)
    text = promql_parser.parse(query).prettify()
    found = re.findall(r"(mail_[a-z_]+)(?:\{([^}]*)\})?", text)
    return [(name, set(re.findall(r"(\w+)\s*[!=]", matchers))) for name, matchers in found]


@pytest.mark.parametrize(("place", "query"), queries())
def test_a_query_uses_what_is_exported(exported, place, query):
    """It parses, and selects metrics by labels that the real exporter shows."""
    found = selectors(query)
    assert found, place
    for name, labels in found:
        assert name in exported, f"{place}: {name}"
        assert labels <= exported[name] | SCRAPED, f"{place}: {name}"


def test_every_metric_is_on_the_dashboard(exported):
    """What is worth exporting is worth a look."""
    shown = {
        name
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel["targets"]
        for name, _ in selectors(target["expr"])
    }
    for metric in METRICS:
        assert any(name.startswith(metric.name.replace(".", "_")) for name in shown), metric.name


def test_panels_do_not_overlap():
    """Each has its own place, and its own id."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_an_alert_says_what_to_run():
    """Each has a severity, a summary, and a command that exists."""
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
        named = re.findall(r"`mailkeep ([a-z-]+)", rule["annotations"]["description"])
        assert named, rule["alert"]
        assert set(named) <= commands, rule["alert"]
