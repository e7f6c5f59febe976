"""What deploy/ ships fits what the program exports: names, labels, rules, units."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from backpressure.buffer_manager import BufferManager
from backpressure.metrics import FAMILIES
from backpressure.service.load import SINKS, SOURCES, load
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "forebay.json"
RULES = DEPLOY / "prometheus" / "forebay.rules.yml"
RULES_TEST = DEPLOY / "prometheus" / "forebay.rules.test.yml"

LABELS = {family.name: set(family.labels) for family in FAMILIES}
for _family in FAMILIES:
    if _family.kind == "histogram":
        LABELS[_family.name + "_bucket"] = {*_family.labels, "le"}
        LABELS[_family.name + "_count"] = LABELS[_family.name + "_sum"] = set(_family.labels)
        del LABELS[_family.name]
# Put on by the Prometheus server, or by a Collector of several buffers.
SERVER = {"job", "instance", "buffer"}


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return board


def expressions() -> list[str]:
    return [
        target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())
    ]


def check(expression: str) -> set[str]:
    """Assert that metrics and labels in an expression are exported; returns the
    metrics.
    """
    found = re.findall(r"(backpressure_buffer_\w+)(?:\{([^}]*)\})?", expression)
    for name, selector in found:
        assert name in LABELS, f"{name} is not exported: {expression}"
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert labels <= LABELS[name] | SERVER, (
            f"{name} has no label {labels - LABELS[name] - SERVER}"
        )
    known = set().union(*(LABELS[name] for name, _ in found)) | SERVER
    for kept in re.findall(r"(?:by|without)\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in kept.split(",")} <= known, expression
    return {name for name, _ in found}


def test_the_dashboard_asks_for_what_is_exported() -> None:
    asked = set()
    for expression in expressions():
        asked |= check(expression)
        assert asked, expression
    # And shows all of it: a metric that no panel shows is either useless, or forgotten
    # here. Of a histogram the buckets do.
    parts = {name for name in LABELS if name.endswith(("_seconds_count", "_seconds_sum"))}
    assert asked - parts == set(LABELS) - parts


def test_label_values_in_the_dashboard_and_the_rules_exist() -> None:
    stats = BufferManager().stats()
    values: dict[str, set[str]] = {}
    for family in FAMILIES:
        for labels, _ in family.read(stats):
            for name, value in zip(family.labels, labels, strict=True):
                values.setdefault(name, set()).add(value)
    for text in (*expressions(), RULES.read_text()):
        for label in ("outcome", "state", "reason", "signal", "result"):
            for used in re.findall(rf'\b{label}=~?"([^"]*)"', text):
                assert set(used.split("|")) <= values[label], f"{label}={used}"


def test_the_dashboard_is_well_formed() -> None:
    board = dashboard()
    panels = board["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    assert {variable["name"] for variable in board["templating"]["list"]} == {
        "datasource",
        "job",
        "instance",
    }
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert 'job=~"$job",instance=~"$instance"' in target["expr"]
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, f"{one} and {other} overlap"


def test_the_rules_ask_for_what_is_exported_and_each_is_tested() -> None:
    text = "".join(
        line
        for line in RULES.read_text().splitlines(keepends=True)
        if not line.lstrip().startswith("#")
    )
    asked = set()
    # Only the expressions: a summary may speak of a metric in words.
    for expression in re.findall(r"expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", text):
        asked |= check("".join(expression))
    assert len(asked) >= 9
    alerts = re.findall(r"- alert: (\w+)", text)
    tested = RULES_TEST.read_text()
    for alert in alerts:
        cases = re.findall(rf"alertname: {alert}\b(.*(?:\n\s+exp_alerts:.*)?)", tested)
        assert any("exp_alerts: []" in case for case in cases), (
            f"no test in which {alert} keeps quiet"
        )
        assert any("exp_alerts: []" not in case for case in cases), (
            f"no test in which {alert} fires"
        )
    for name in re.findall(r"series: '(\w+)", tested):
        assert name in LABELS, f"{name} is not exported"


def promtool(*arguments: str, cwd: Path) -> None:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt-get install --no-install-recommends prometheus")
    done = subprocess.run([found, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(("check", RULES), id="check"),
        pytest.param(("test", RULES_TEST), id="test", marks=pytest.mark.proof),
    ],
)
def test_the_rules_with_promtool(what: tuple[str, Path]) -> None:
    promtool(what[0], "rules", what[1].name, cwd=what[1].parent)


def test_the_dashboard_speaks_promql(tmp_path: Path) -> None:
    stand_ins = {"$__rate_interval": "5m", "$__range": "1h", "$job": ".*", "$instance": ".*"}
    rules = []
    for number, expression in enumerate(expressions()):
        for variable, value in stand_ins.items():
            expression = expression.replace(variable, value)
        rules.append({"record": f"panel:{number}", "expr": expression})
    # JSON is YAML.
    (tmp_path / "panels.yml").write_text(
        json.dumps({"groups": [{"name": "panels", "rules": rules}]})
    )
    promtool("check", "rules", "panels.yml", cwd=tmp_path)


# --------------------------------------------------------------- the unit and the image

UNIT = DEPLOY / "systemd" / "forebay.service"
DOCKERFILE = DEPLOY / "Dockerfile"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd")
@pytest.mark.platform
def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    # systemd looks for the program itself.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/forebay/bin/forebay", "/bin/true"))
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "also what it only warns of, such as a misspelt key"
    security = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=20",
        "--no-pager",
        str(unit),
    ]
    done = subprocess.run(security, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_unit_fits_the_program_and_the_example() -> None:
    unit = UNIT.read_text()
    [start] = re.findall(r"^ExecStart=\S+/forebay (.*)$", unit, re.M)
    [before] = re.findall(r"^ExecStartPre=\S+/forebay (.*)$", unit, re.M)
    assert before == start + " --check"
    assert start == "serve --config /etc/forebay/forebay.toml"
    config = load(
        str(DEPLOY / "forebay.toml"),
        {"STATE_DIRECTORY": "/var/lib/forebay", "RUNTIME_DIRECTORY": "/run/forebay"},
    )
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert config.service.drain_timeout < float(stop)
    [most] = re.findall(r"^MemoryMax=(\d+)G$", unit, re.M)
    assert 5 * config.buffer.lane_bytes * 2 < int(most) << 30
    assert "Type=notify\n" in unit  # READY=1 is sent: tests/service/test_serve.py


def test_the_image_fits_the_tree() -> None:
    text = DOCKERFILE.read_text()
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert "!" + source.removeprefix("./") in sent, f"{source} is not sent to the builder"
    for needed in ("pyproject.toml", "setup.py", "CMakeLists.txt", "README.md", "LICENSE"):
        assert re.search(rf"^COPY .*\b{re.escape(needed)}\b", text, re.M), needed
    assert '"serve", "--config", "/etc/forebay/forebay.toml"' in text
    assert re.search(r"^USER 10001$", text, re.M)


# ---------------------------------------------------------------- the page


def test_the_operations_page_has_every_metric_and_every_alert() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    listed = dict(re.findall(r"^\| `(backpressure_buffer_\w+)` \| \w+ \| ([^|]*) \|", page, re.M))
    assert listed == {family.name: ", ".join(family.labels) or "-" for family in FAMILIES}
    assert set(re.findall(r"^\| `(Forebay\w+)`", page, re.M)) == set(
        re.findall(r"- alert: (\w+)", RULES.read_text())
    )


def test_the_operations_page_has_every_type_of_source_and_sink() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for kind in (*SOURCES, *SINKS):
        assert f"`{kind}`" in text, f"docs/operations.md does not name {kind}"
