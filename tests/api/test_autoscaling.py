"""Autoscaling annotations and KServe's fields: values, precedence, and every bad value named with its remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.api.knative import autoscaler_config, autoscaling
from kserve_ext.api.knative.autoscaler_config import EMBEDDED, AutoscalerConfig
from kserve_ext.api.knative.autoscaling import PREFIX, TABLE
from kserve_ext.api.problems import Findings
from kserve_ext.core.facts import Scale
from kserve_ext.core.scaling.decide import ScalingSpec

KNATIVE = AutoscalerConfig()


class Fields(NamedTuple):
    """KServe's scale fields, with KServe's defaults."""

    min_replicas: int = 1
    max_replicas: int = 0
    scale_target: int | None = None
    scale_metric: str = ""
    concurrency: int = 0


def parse(
    given: dict[str, str],
    component: Fields | None = None,
    config: AutoscalerConfig = KNATIVE,
    concurrency: int = 0,
) -> tuple[Scale, Findings]:
    findings = Findings()
    keyed = {PREFIX + key: text for key, text in given.items()}
    return autoscaling.read(keyed, findings, config, component, concurrency), findings


def test_defaults_are_those_of_config_autoscaler() -> None:
    scale, findings = parse({})
    assert findings
    assert scale == Scale(target=100, target_burst_capacity=211)
    spec = ScalingSpec.of(scale)
    assert (spec.target, spec.total, spec.panic_threshold) == (70, 100, 2)


def test_the_embedded_cluster_holds_every_request_and_may_start_at_zero() -> None:
    scale, findings = parse({"initial-scale": "0"}, Fields(min_replicas=0), EMBEDDED)
    assert findings
    assert (scale.min, scale.initial, scale.target_burst_capacity) == (0, 0, -1)
    assert not findings.warnings


GIVEN = {
    "class": "kpa.autoscaling.knative.dev",
    "metric": "rps",
    "target": "12.5",
    "target-utilization-percentage": "80",
    "target-burst-capacity": "42",
    "min-scale": "2",
    "max-scale": "9",
    "initial-scale": "3",
    "activation-scale": "4",
    "window": "1m30s",
    "panic-window-percentage": "20",
    "panic-threshold-percentage": "150",
    "scale-down-delay": "15m",
    "scale-to-zero-pod-retention-period": "1m5.5s",
    "metric-aggregation-algorithm": "weightedExponential",
}
WANT = Scale(
    min=2,
    max=9,
    initial=3,
    activation=4,
    metric="rps",
    target=12.5,
    utilization=0.8,
    target_burst_capacity=42,
    window_s=90,
    panic_window_percent=20,
    panic_threshold_percent=150,
    scale_down_delay_s=900,
    retention_s=65.5,
    algorithm="weighted-exponential",
)


def test_every_annotation() -> None:
    assert set(GIVEN) == set(TABLE)
    scale, findings = parse(GIVEN)
    assert findings
    assert scale == WANT


def test_every_alias() -> None:
    scale, findings = parse({TABLE[name].alias or name: text for name, text in GIVEN.items()})
    assert findings
    assert scale == WANT


def test_of_two_spellings_the_one_with_dashes_counts() -> None:
    scale, findings = parse({"minScale": "x", "min-scale": "2"})
    assert findings
    assert scale.min == 2
    assert "autoscaling.knative.dev/min-scale is given too" in findings.warnings[0]


BAD = [
    ("class", "hpa.autoscaling.knative.dev", "one of kpa.autoscaling.knative.dev, kserve-galaxy.io"),
    ("metric", "cpu", "one of concurrency, rps"),
    ("target", "0", "a number >= 0.01"),
    ("target", "nan", "a number >= 0.01"),
    ("target", "1e999", "a number >= 0.01"),
    ("target", "ten", "a number >= 0.01"),
    ("target-utilization-percentage", "0.7", "a number from 1 to 100"),
    ("target-burst-capacity", "-2", "-1 (unlimited), 0 or a number > 0"),
    ("min-scale", "-1", "an integer >= 0"),
    ("min-scale", "1.0", "an integer >= 0"),
    ("min-scale", "1_0", "an integer >= 0"),
    ("max-scale", "2147483648", "an integer >= 0"),
    ("initial-scale", "one", "an integer >= 0"),
    ("activation-scale", "1", "an integer >= 2"),
    ("window", "5s", "a duration from 6s to 1h in whole seconds"),
    ("window", "61m", "a duration from 6s to 1h in whole seconds"),
    ("window", "6.5s", "a duration from 6s to 1h in whole seconds"),
    ("window", "60", "a duration from 6s to 1h in whole seconds"),
    ("panic-window-percentage", "0.5", "a number from 1 to 100"),
    ("panic-threshold-percentage", "109", "a number from 110 to 1000"),
    ("scale-down-delay", "-1s", "a duration from 0s to 1h in whole seconds"),
    ("scale-to-zero-pod-retention-period", "1h1ns", "a duration from 0s to 1h"),
    ("metric-aggregation-algorithm", "mean", "one of linear, weighted-exponential, weightedExponential"),
]


@pytest.mark.parametrize(("key", "text", "allowed"), BAD)
def test_a_bad_value_names_the_key_the_value_and_what_is_allowed(key: str, text: str, allowed: str) -> None:
    scale, findings = parse({key: text})
    (problem,) = findings.problems
    assert problem.field == f"metadata.annotations[{PREFIX}{key}]"
    assert text in problem.value
    assert allowed in problem.remedy
    assert scale == parse({})[0]


def test_all_problems_are_collected() -> None:
    _, findings = parse({key: text for key, text, _ in BAD})
    assert len(findings.problems) == len({key for key, _, _ in BAD})


def test_an_unknown_key_is_a_problem_that_names_the_nearest() -> None:
    _, findings = parse({"minscale": "1"})
    (problem,) = findings.problems
    assert "did you mean autoscaling.knative.dev/min-scale?" in problem.remedy
    assert Findings() is not findings


def test_keys_of_others_are_left_alone() -> None:
    findings = Findings()
    autoscaling.read({"serving.knative.dev/rollout-duration": "x"}, findings, KNATIVE)
    assert findings
    assert not findings.warnings


@pytest.mark.parametrize(
    ("given_", "config", "field", "what"),
    [
        ({"min-scale": "3", "max-scale": "2"}, KNATIVE, "max-scale", "below min-scale (3)"),
        (
            {"activation-scale": "5", "max-scale": "4"},
            KNATIVE,
            "activation-scale",
            "outside the scale bounds",
        ),
        (
            {"activation-scale": "2", "min-scale": "4"},
            KNATIVE,
            "activation-scale",
            "outside the scale bounds",
        ),
        ({"initial-scale": "0"}, KNATIVE, "initial-scale", "0 is not allowed by this cluster"),
        (
            {"max-scale": "9"},
            replace(KNATIVE, max_scale=5, max_scale_limit=5),
            "max-scale",
            "too high for this cluster",
        ),
        (
            {"max-scale": "0"},
            replace(KNATIVE, max_scale=5, max_scale_limit=5),
            "max-scale",
            "unlimited for this cluster",
        ),
    ],
)
def test_values_that_do_not_go_together(
    given_: dict[str, str], config: AutoscalerConfig, field: str, what: str
) -> None:
    _, findings = parse(given_, config=config)
    (problem,) = findings.problems
    assert PREFIX + field in problem.field
    assert what in problem.what


def test_kserves_fields_win_and_its_bounds_are_the_only_ones() -> None:
    component = Fields(min_replicas=0, max_replicas=3, scale_target=5, scale_metric="rps", concurrency=8)
    scale, findings = parse({"target": "9", "metric": "concurrency", "min-scale": "7"}, component)
    assert findings
    assert (scale.min, scale.max, scale.target, scale.metric) == (0, 3, 5, "rps")
    assert findings.warnings == [
        f"metadata.annotations[{PREFIX}min-scale]: ignored, as in KServe; use spec.predictor.minReplicas"
    ]


def test_kserve_starts_with_one_and_drops_an_initial_scale_of_zero() -> None:
    scale, findings = parse({"initial-scale": "0"}, Fields())
    assert findings
    assert (scale.min, scale.initial) == (1, 1)
    assert "initial-scale" in findings.warnings[0]


@pytest.mark.parametrize(
    ("given_", "concurrency", "target"),
    [
        ({}, 0, 100),
        ({}, 4, 4),
        ({"target": "10"}, 4, 4),
        ({"target": "3"}, 4, 3),
        ({"target": "10"}, 0, 10),
        ({"metric": "rps"}, 4, 200),
        ({"metric": "rps", "target": "10"}, 4, 10),
    ],
)
def test_the_target_never_exceeds_the_hard_limit(
    given_: dict[str, str], concurrency: int, target: float
) -> None:
    assert parse(given_, concurrency=concurrency)[0].target == target
    assert parse(given_, Fields(concurrency=concurrency))[0].target == target


@given(st.dictionaries(st.sampled_from([*TABLE, "minScale"]), st.text(max_size=8)))
def test_any_text_gives_a_value_or_a_problem(texts: dict[str, str]) -> None:
    scale, _ = parse(texts)
    spec = ScalingSpec.of(scale)
    assert spec.target >= 0.01
    assert 6 <= spec.stable_window_s <= 3600


# config-autoscaler


def config_of(data: dict[str, str]) -> tuple[AutoscalerConfig, Findings]:
    findings = Findings()
    return autoscaler_config.read(data, findings), findings


def test_config_overrides_and_leaves_the_rest() -> None:
    config, findings = config_of(
        {
            "_example": "ignored",
            "stable-window": "90s",
            "container-concurrency-target-percentage": "0.5",
            "enable-scale-to-zero": "False",
            "max-scale-up-rate": "10",
        }
    )
    assert findings
    assert config == replace(
        KNATIVE,
        stable_window=90,
        container_concurrency_target_percentage=0.5,
        enable_scale_to_zero=False,
        max_scale_up_rate=10,
    )
    scale = parse({}, config=config)[0]
    assert (scale.window_s, scale.utilization, scale.to_zero, scale.max_up_rate) == (90, 0.5, False, 10)
    assert parse({"metric": "rps"}, config=config)[0].utilization == 0.7


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("container-concurrency-target-percentage", "0"),
        ("container-concurrency-target-percentage", "101"),
        ("container-concurrency-target-default", "0"),
        ("requests-per-second-target-default", "-1"),
        ("target-burst-capacity", "-3"),
        ("stable-window", "5s"),
        ("panic-window-percentage", "101"),
        ("panic-threshold-percentage", "100"),
        ("max-scale-up-rate", "1"),
        ("max-scale-down-rate", "1.0"),
        ("enable-scale-to-zero", "yes"),
        ("scale-to-zero-grace-period", "0s"),
        ("scale-to-zero-pod-retention-period", "-1s"),
        ("pod-autoscaler-class", "hpa.autoscaling.knative.dev"),
        ("activator-capacity", "0.5"),
        ("initial-scale", "-1"),
        ("initial-scale", "0"),
        ("allow-zero-initial-scale", "on"),
        ("min-scale", "x"),
        ("max-scale", "-1"),
        ("max-scale-limit", "-1"),
        ("max-scale-limit", "5"),
        ("scale-down-delay", "1.5s"),
    ],
)
def test_a_bad_config_value_is_one_problem(key: str, text: str) -> None:
    _, findings = config_of({key: text})
    assert len(findings.problems) == 1
    assert findings.problems[0].remedy


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_what_go_takes_for_true_and_false_is_so_here(text: str) -> None:
    config, findings = config_of({"allow-zero-initial-scale": text})
    assert findings
    assert config.allow_zero_initial_scale
    no = {"1": "0", "t": "f", "T": "F", "TRUE": "FALSE", "true": "false", "True": "False"}[text]
    config, findings = config_of({"enable-scale-to-zero": no})
    assert findings
    assert not config.enable_scale_to_zero


def test_an_unknown_config_key_is_a_warning() -> None:
    config, findings = config_of({"stable-windw": "90s"})
    assert findings
    assert config == KNATIVE
    assert "did you mean stable-window?" in findings.warnings[0]


def test_config_bounds_go_together() -> None:
    _, findings = config_of({"min-scale": "3", "max-scale": "2"})
    assert "min-scale (3)" in findings.problems[0].what
    assert config_of({"initial-scale": "0", "allow-zero-initial-scale": "true"})[1]
