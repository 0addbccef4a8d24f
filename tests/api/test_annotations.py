"""The table of annotations: values, refusals with the allowed values, and docs that are current."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_ext.api import annotations as table
from kserve_ext.api.annotations import PREFIX, TABLE, Settings
from kserve_ext.api.problems import Findings


def read(**given: str) -> tuple[Settings, Findings]:
    findings = Findings()
    settings = table.read({PREFIX + k.replace("_", "-"): v for k, v in given.items()}, findings)
    return settings, findings


def test_defaults() -> None:
    settings, findings = read()
    assert settings == Settings()
    assert findings


def test_values() -> None:
    settings, findings = read(
        role="decode",
        pd_group="chat",
        pd="never",
        pd_threshold_tokens="256",
        pd_ratio="1:4..2:1",
        kv_transfer="tcp",
        kv_transfer_required="true",
        hold_seconds="12.5",
        hold_requests="7",
        hold_bytes="1Mi",
        preload="node",
        affinity="prefix",
        tenant_header="X-Team",
        engine="galaxy",
    )
    assert findings, findings.problems
    assert settings == Settings(
        "decode",
        "chat",
        "never",
        256,
        (1, 4, 2, 1),
        "tcp",
        True,
        12.5,
        7,
        1 << 20,
        0,
        "node",
        "prefix",
        "x-team",
    )


BAD = [
    ("role", "both", "unified, prefill, decode"),
    ("pd-group", "Chat!", "lower-case letters"),
    ("pd-threshold-tokens", "-1", "an integer >= 0"),
    ("pd-threshold-tokens", "many", "an integer >= 0"),
    ("pd-ratio", "4:1..1:4", "1:4..2:1"),
    ("pd-ratio", "1:0..2:1", "1:4..2:1"),
    ("kv-transfer", "infiniband", "auto, rdma, ipc, tcp, nixl, none"),
    ("kv-transfer-required", "yes", "true, false"),
    ("standby", "1001", "an integer from 0 to 1000"),
    ("standby", "-1", "an integer from 0 to 1000"),
    ("hold-seconds", "0", "a number of seconds"),
    ("hold-seconds", "nan", "a number of seconds"),
    ("hold-bytes", "64MB", "a quantity of bytes"),
    ("tenant-header", "a b", "the name of a request header"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_a_bad_value_names_the_field_and_what_is_allowed(name: str, value: str, allowed: str) -> None:
    findings = Findings()
    table.read({PREFIX + name: value}, findings)
    (problem,) = findings.problems
    assert problem.field == f"metadata.annotations[{PREFIX}{name}]"
    assert allowed in problem.remedy
    assert value in problem.value


def test_an_unknown_key_names_the_nearest() -> None:
    findings = Findings()
    table.read({PREFIX + "hold-second": "1", "example.com/other": "x"}, findings)
    (problem,) = findings.problems
    assert problem.remedy == f"did you mean {PREFIX}hold-seconds?"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"role": "prefill"}, "role"),
        ({"pd_group": "chat"}, "pd-group"),
        ({"kv_transfer": "none", "kv_transfer_required": "true"}, "kv-transfer-required"),
    ],
)
def test_combinations_without_sense(given: dict[str, str], field: str) -> None:
    settings, findings = read(**given)
    assert findings
    table.check_together(settings, findings)
    assert [p.field for p in findings.problems] == [f"metadata.annotations[{PREFIX}{field}]"]


def test_each_row_is_a_setting_and_says_everything() -> None:
    fields = set(Settings._fields) | {"engine"}
    assert {row.name.replace("-", "_") for row in TABLE} == fields
    for row in TABLE:
        assert row.allowed
        assert row.default
        assert row.read_by
        assert row.meaning.endswith(".")


def test_docs_are_current() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "annotations.md"
    assert page.read_text() == table.markdown(), "run `python -m kserve_ext.api.annotations`"
