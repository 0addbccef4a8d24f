"""galaxy up: options that can't be are refused by name before anything is started, and say what to write."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from kserve_ext.cli.__main__ import main
from kserve_ext.cli.verbs import up


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--schedule", "4:1", "the most is less than the least"),
        ("--schedule", "0:4", "there may be 1 to 64"),
        ("--threshold", "schedule=nan", "write KIND=RATE"),
        ("--threshold", "foo=1", "none of dispatch, schedule"),
        ("--stable", "nan", "write a number of seconds"),
        ("--stable", "inf", "write a number of seconds"),
        ("--domain", "", "write a DNS name"),
        ("--domain", "a b", "write a DNS name"),
        ("--domain", "Galaxy.local", "in lower case"),
        ("--controllers", "2", "give --store"),
        ("--store", "foo://host", "a store is redis://HOST:PORT/DB"),
        ("--store", "rediss://host/0?ssl_ca_certs=/nope", "ssl_ca_certs=/nope is not there"),
        ("--store", "redis://host/0?foo=bar", "foo"),
        ("--node-labels", "zone", "write KEY=VALUE"),
        ("--node-labels", "node-7:zone=a", "there is no node node-7"),
        ("--node-labels", "kubernetes.io/hostname=a", "is the name of each node"),
        ("--namespace-weights", "a=0", "write NAMESPACE=WEIGHT"),
        ("--namespace-weights", "A_b=2", "write NAMESPACE=WEIGHT"),
        ("--namespace-weights", "a=2,a=3", "a is given twice"),
    ],
)
def test_what_can_not_be_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, says: str
) -> None:
    monkeypatch.setattr(up, "start", lambda folder: pytest.fail("it starts"))
    data = tmp_path / "data"
    result = CliRunner().invoke(main, ["up", "--http-port", "0", "--data", str(data), option, value])
    assert result.exit_code == 2, result.output
    assert f"Invalid value for {option}" in result.output.replace("'", "")
    assert says in result.output
