"""The webhook's answers: what is refused and how it is said, what is patched, what is let alone."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.api import admission
from kserve_ext.api.admission import (
    BURST,
    PLACES,
    Answer,
    Malformed,
    Request,
    mutate,
    read,
    response,
    validate,
)
from kserve_ext.api.annotations import BY_NAME, PREFIX, TABLE
from tests.support.api_objects import json_patch

Object = dict[str, Any]
ENGINE = {PREFIX + "engine": "galaxy"}
KNATIVE = "serving.knative.dev"
KSERVE = "serving.kserve.io"
TEMPLATE = "spec.template.metadata.annotations"


def ours(**notes: str) -> dict[str, str]:
    return {PREFIX + name.replace("_", "-"): value for name, value in notes.items()}


def at(path: str, notes: dict[str, str], base: Object | None = None) -> Object:
    """An object with annotations there."""
    obj: Object = {"metadata": {"name": "chat", "namespace": "team"}} if base is None else base
    *above, last = path.split(".")
    place = obj
    for name in above:
        place = place.setdefault(name, {})
    place[last] = notes
    return obj


def request(kind: str, new: Object, old: Object | None = None) -> Request:
    group = KSERVE if kind.startswith("Inference") or kind.endswith("Runtime") else KNATIVE
    return Request("u", group, kind, "UPDATE" if old else "CREATE", new, old or {})


def service(notes: dict[str, str], old: dict[str, str] | None = None) -> Answer:
    former = None if old is None else at(TEMPLATE, old)
    return validate(request("Service", at(TEMPLATE, notes), former))


def revision(notes: dict[str, str], old: dict[str, str] | None = None, **metadata: Any) -> Request:
    new = at("metadata.annotations", notes)
    new["metadata"] |= metadata
    return request("Revision", new, None if old is None else at("metadata.annotations", old))


def said(answer: Answer) -> str:
    return str(response("u", answer)["response"].get("status", {}).get("message", ""))


# --- refusals

PATHS = [
    ("InferenceService", "metadata.annotations"),
    ("InferenceService", "spec.predictor.annotations"),
    ("InferenceService", "spec.transformer.annotations"),
    ("ServingRuntime", "spec.annotations"),
    ("ClusterServingRuntime", "metadata.annotations"),
    ("Service", TEMPLATE),
    ("Service", "metadata.annotations"),
    ("Configuration", TEMPLATE),
    ("Revision", "metadata.annotations"),
]


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_a_mistyped_key_is_refused_wherever_it_stands(kind: str, path: str) -> None:
    answer = validate(request(kind, at(path, ours(hold_second="3"))))
    assert said(answer) == (
        f"{path}[{PREFIX}hold-second]: unknown annotation; did you mean {PREFIX}hold-seconds? "
        "(docs/annotations.md has all keys)"
    )


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_a_bad_value_is_refused_with_what_is_allowed(kind: str, path: str) -> None:
    answer = validate(request(kind, at(path, ours(role="both"))))
    assert said(answer).startswith(
        f"{path}[{PREFIX}role]: not an allowed value (is 'both'); use one of unified, prefill, decode"
    )


def test_a_key_that_is_near_none_is_answered_with_all() -> None:
    (problem,) = service(ours(zzz="1")).problems
    assert problem.remedy == f"use one of {', '.join(BY_NAME)}, each after {PREFIX}"


def test_every_problem_is_said_at_once() -> None:
    text = said(service(ours(rol="prefill", hold_requests="-1", pd_ratio="4:1..1:4")))
    assert [text.count(f"[{PREFIX}{name}]") for name in ("rol", "hold-requests", "pd-ratio")] == [1, 1, 1]
    assert text.count("; and ") == 2


TOGETHER = [
    ({"role": "prefill"}, "role", "add kserve-galaxy.io/pd-group"),
    ({"pd_group": "chat"}, "pd-group", "add kserve-galaxy.io/role"),
    (
        {"role": "decode", "pd_group": "chat", "kv_transfer": "none", "kv_transfer_required": "true"},
        "kv-transfer-required",
        "set kserve-galaxy.io/kv-transfer to",
    ),
]


@pytest.mark.parametrize(("notes", "name", "remedy"), TOGETHER)
def test_annotations_that_make_no_sense_together_are_refused(
    notes: dict[str, str], name: str, remedy: str
) -> None:
    (problem,) = service({**ENGINE, **ours(**notes)}).problems
    assert problem.field == f"{TEMPLATE}[{PREFIX}{name}]"
    assert remedy in problem.remedy


@pytest.mark.parametrize("notes", [{"role": "prefill"}, {"pd_group": "chat"}])
def test_of_an_inference_service_the_runtime_may_say_the_rest(notes: dict[str, str]) -> None:
    answer = validate(request("InferenceService", at("metadata.annotations", {**ENGINE, **ours(**notes)})))
    assert not answer.problems
    assert any("if its runtime doesn't" in text for text in answer.warnings)


def test_the_predictors_annotations_win() -> None:
    obj = at("metadata.annotations", ours(role="unified", pd_group="chat"))
    at("spec.predictor.annotations", ours(role="prefill"), obj)
    answer = validate(request("InferenceService", obj))
    assert not answer.problems
    assert not any("is in no group" in text for text in answer.warnings)


# --- updates


def test_what_was_wrong_before_is_only_warned_of() -> None:
    old = ours(rol="prefill", hold_seconds="0")
    answer = service({**old, "other": "x"}, old)
    assert not answer.problems
    assert sum("(as it was)" in text for text in answer.warnings) == 2


def test_what_gets_worse_is_refused_beside_it() -> None:
    (problem,) = service(ours(rol="prefill", hold_seconds="0"), ours(rol="prefill")).problems
    assert problem.field == f"{TEMPLATE}[{PREFIX}hold-seconds]"


def test_what_is_being_deleted_can_be_changed() -> None:
    new = at("metadata.annotations", ours(rol="x"))
    new["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert validate(request("InferenceService", new)) == Answer()


@pytest.mark.parametrize("row", [row for row in TABLE if row.fixed], ids=lambda row: row.name)
def test_what_instances_have_read_cannot_change_on_a_revision(row: Any) -> None:
    (problem,) = validate(
        revision(ENGINE, {**ENGINE, row.key: row.choices[0] if row.choices else "1"})
    ).problems
    assert problem.field == f"metadata.annotations[{row.key}]"
    assert TEMPLATE in problem.remedy


def test_the_rest_of_a_revision_can_change() -> None:
    answer = validate(revision({**ENGINE, **ours(hold_seconds="3")}, {**ENGINE, **ours(hold_seconds="4")}))
    assert not answer.problems


def test_in_a_template_everything_can_change() -> None:
    roles = ({**ENGINE, **ours(role=role, pd_group="chat")} for role in ("prefill", "decode"))
    assert not service(*roles).problems


OWNER = {"apiVersion": "serving.knative.dev/v1", "kind": "Configuration", "name": "chat", "controller": True}


def test_what_knative_makes_of_an_object_is_not_judged_again() -> None:
    assert validate(revision(ours(rol="x"), ownerReferences=[OWNER])) == Answer()
    assert validate(revision(ours(rol="x"), ownerReferences=[{**OWNER, "controller": False}])).problems


def test_but_its_revisions_stay_as_they_are() -> None:
    assert validate(revision(ENGINE, {**ENGINE, **ours(role="decode")}, ownerReferences=[OWNER])).problems


# --- warnings


def warnings(notes: dict[str, str]) -> str:
    return "\n".join(service(notes).warnings)


def test_a_key_of_ours_where_nothing_reads_it() -> None:
    answer = validate(request("Service", at("metadata.annotations", ENGINE)))
    assert answer.warnings == (
        f"metadata.annotations[{PREFIX}engine]: does nothing here; write it at {TEMPLATE}",
    )
    both = at(TEMPLATE, ENGINE, at("metadata.annotations", ENGINE))
    assert validate(request("Service", both)) == Answer()


def test_another_value_where_nothing_reads_it() -> None:
    above = at("metadata.annotations", {**ENGINE, **ours(standby="3")})
    answer = validate(request("Service", at(TEMPLATE, {**ENGINE, **ours(standby="1")}, above)))
    assert answer.warnings == (
        f"metadata.annotations[{PREFIX}standby]: does nothing here; write it at {TEMPLATE}, which says 1",
    )


def test_a_level_of_standby_pods_that_are_none() -> None:
    for more in ({}, ours(standby="0")):
        assert "keeps no pods without" in warnings({**ENGINE, **ours(standby_level="S1"), **more})
    assert not warnings({**ENGINE, **ours(standby_level="S1", standby="1")})
    assert not warnings({**ENGINE, **ours(standby="0")})


def test_what_is_not_opted_in() -> None:
    assert f"[{PREFIX}hold-seconds]: does nothing without {PREFIX}engine: galaxy" in warnings(
        ours(hold_seconds="3")
    )


def test_what_nothing_acts_on_in_a_knative_cluster_yet() -> None:
    text = warnings({**ENGINE, **ours(hold_seconds="3")})
    assert text == f"{TEMPLATE}[{PREFIX}hold-seconds]: has no effect in a Knative cluster so far"


def test_what_templates_of_runtimes_do_not_see() -> None:
    group = {**ENGINE, **ours(role="decode", pd_group="chat")}
    below = at("spec.predictor.annotations", {**group, **ours(pd="never")}, at("metadata.annotations", group))
    (text,) = validate(request("InferenceService", below)).warnings
    assert text.startswith(f"spec.predictor.annotations[{PREFIX}pd]: galaxy-vllm-prefill and -decode")


def test_what_is_for_groups_only() -> None:
    assert "does nothing without kserve-galaxy.io/pd-group" in warnings({**ENGINE, **ours(kv_transfer="tcp")})


def test_another_prefix_that_was_meant_to_be_ours() -> None:
    text = warnings({"kserve-galaxy/role": "decode", "galaxyproject.org/role": "x"})
    assert text == f"{TEMPLATE}[kserve-galaxy/role]: is none of ours; did you mean {PREFIX}role?"


def test_a_prefix_mistyped_in_its_middle() -> None:
    text = warnings({"kserve-glaxy.io/engine": "galaxy"})
    assert text == f"{TEMPLATE}[kserve-glaxy.io/engine]: is none of ours; did you mean {PREFIX}engine?"


@pytest.mark.parametrize(("value", "warned"), [("0", True), ("200", True), ("-1", False), ("-1.0", False)])
@pytest.mark.parametrize("key", [BURST, "autoscaling.knative.dev/targetBurstCapacity"])
def test_a_burst_capacity_by_which_requests_pass_the_activator_by(key: str, value: str, warned: bool) -> None:
    assert ("pass the activator" in warnings({**ENGINE, key: value})) is warned


def test_an_inference_service_without_knative() -> None:
    notes = {**ENGINE, "serving.kserve.io/deploymentMode": "RawDeployment"}
    (text,) = validate(request("InferenceService", at("metadata.annotations", notes))).warnings
    assert "makes no Knative revision" in text


# --- target-burst-capacity


def test_a_revision_that_is_opted_in_keeps_the_activator_in_its_path() -> None:
    asked = revision(ENGINE)
    patched = json_patch(asked.new, list(mutate(asked).patch))
    assert patched["metadata"]["annotations"] == {**ENGINE, BURST: "-1"}
    assert mutate(asked._replace(new=patched)) == Answer()


@pytest.mark.parametrize(
    "asked",
    [
        revision({}),
        revision({"example.com/engine": "galaxy"}),
        revision({**ENGINE, BURST: "0"}),
        revision({**ENGINE, "autoscaling.knative.dev/targetBurstCapacity": "70"}),
        revision(ENGINE, deletionTimestamp="2026-01-01T00:00:00Z"),
        request("Service", at(TEMPLATE, ENGINE)),
        request("Configuration", at(TEMPLATE, ENGINE)),
        request("InferenceService", at("metadata.annotations", ENGINE)),
    ],
)
def test_everything_else_stays_as_it_is(asked: Request) -> None:
    assert mutate(asked) == Answer()


# --- the form


def review(obj: Any, **fields: Any) -> Object:
    kind = {"group": KNATIVE, "version": "v1", "kind": "Revision"}
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "7",
            "kind": kind,
            "operation": "CREATE",
            "object": obj,
            "oldObject": None,
            **fields,
        },
    }


def test_an_answer_is_of_the_request_and_carries_its_patch() -> None:
    asked = read(review(at("metadata.annotations", ENGINE)))
    answer = response(asked.uid, mutate(asked))
    assert answer["kind"] == "AdmissionReview"
    assert (answer["response"]["uid"], answer["response"]["allowed"]) == ("7", True)
    assert answer["response"]["patchType"] == "JSONPatch"
    (operation,) = json.loads(b64decode(answer["response"]["patch"]))
    assert operation["value"] == "-1"


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {},
        {"apiVersion": "admission.k8s.io/v1beta1"},
        review(None),
        review({}, uid=""),
        review({}, uid=3),
    ],
)
def test_what_is_no_review_is_malformed(bad: Any) -> None:
    with pytest.raises(Malformed):
        read(bad)


# --- properties

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metadata", "spec", "template", "predictor", "annotations", "ownerReferences"])
            | st.sampled_from([*(row.key for row in TABLE), BURST, PREFIX + "rol"]),
            below,
            max_size=4,
        )
    ),
    max_leaves=20,
)
KINDS = st.sampled_from(sorted(PLACES))
VALUES = st.one_of(
    st.sampled_from(sorted({choice for row in TABLE for choice in row.choices})), st.text(max_size=6)
)
NOTES = st.dictionaries(
    st.sampled_from(
        [*(row.key for row in TABLE), PREFIX + "rol", "kserve-galaxy/role", BURST, "example.com/x"]
    ),
    VALUES,
    max_size=6,
)


@given(KINDS, st.dictionaries(st.sampled_from(["metadata", "spec"]), JSON), JSON)
def test_no_object_is_too_odd_to_be_answered(kind: tuple[str, str], new: Object, old: Any) -> None:
    asked = read(review(new, kind={"group": kind[0], "kind": kind[1]}, oldObject=old))
    for answer in (mutate(asked), validate(asked)):
        assert json.dumps(response(asked.uid, answer))
        assert all(len(text) <= 256 for text in response(asked.uid, answer)["response"].get("warnings", ()))


@given(NOTES, st.sampled_from(PATHS))
def test_an_object_that_stays_as_it_is_is_never_refused(notes: dict[str, str], path: tuple[str, str]) -> None:
    obj = at(path[1], notes)
    assert not validate(request(path[0], obj, obj)).problems


@given(NOTES, NOTES, st.sampled_from(PATHS))
def test_an_update_is_refused_for_nothing_that_creating_it_would_allow(
    new: dict[str, str], old: dict[str, str], path: tuple[str, str]
) -> None:
    """But for what is fixed."""
    kind, where = path
    anew = validate(request(kind, at(where, new))).problems
    changed = validate(request(kind, at(where, new), at(where, old))).problems
    assert {p for p in changed if "can't change" not in p.what} <= set(anew)


@given(
    st.dictionaries(st.text(max_size=12).filter(lambda key: "galaxy" not in key), VALUES),
    st.sampled_from(PATHS),
)
def test_what_has_nothing_of_ours_is_untouched(notes: dict[str, str], path: tuple[str, str]) -> None:
    asked = request(path[0], at(path[1], notes), at(path[1], notes))
    assert validate(asked) == mutate(asked) == Answer()


LETTERS = "abcdefghijklmnopqrstuvwxyz-_"


@st.composite
def typos(draw: st.DrawFn) -> tuple[str, str]:
    """A key of four letters or more with one letter left out, doubled, changed, or exchanged with the next."""
    name = draw(st.sampled_from([name for name in BY_NAME if len(name) >= 4]))
    place = draw(st.integers(0, len(name) - 2))
    one, two = name[place], name[place + 1]
    wrong = draw(st.sampled_from(["", one + one, draw(st.sampled_from(LETTERS)), None]))
    typo = name[:place] + (two + one + name[place + 2 :] if wrong is None else wrong + name[place + 1 :])
    return name, typo


@given(typos())
def test_a_typo_is_answered_with_the_key_that_was_meant(typo: tuple[str, str]) -> None:
    meant, written = typo
    if written not in BY_NAME:
        (problem,) = service({PREFIX + written: "1"}).problems
        assert problem.remedy == f"did you mean {PREFIX}{meant}?"


def test_docs_are_where_the_message_says() -> None:
    page = admission.DOCS.partition(" ")[0]
    assert (Path(__file__).resolve().parents[2] / page).exists()
