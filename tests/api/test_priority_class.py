"""PriorityClass as the API server takes it, and what it makes of a service."""

from __future__ import annotations

from typing import Any

import pytest

from autoscaler_shim.objects.book import Book, ObjectKey, Refused
from kserve_ext.api.knative.autoscaler_config import EMBEDDED
from kserve_ext.api.kserve.priority_class import PriorityClass
from kserve_ext.api.kserve.render import render
from kserve_ext.api.kserve.storage import Claims
from kserve_ext.api.problems import Findings
from kserve_ext.core.facts import Revision
from tests.api.documents import isvc, runtime

MODEL = "model: {modelFormat: {name: vLLM}, storageUri: 'pvc://models/tiny'}\n"


def document(name: str, value: object, **more: object) -> dict[str, Any]:
    meta = {"name": name}
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": meta,
        "value": value,
        **more,
    }


def refusal(book: Book, given: dict[str, Any]) -> str:
    with pytest.raises(Refused) as caught:
        book.apply(given, "now", "uid")
    return str(caught.value)


def made(predictor: str, book: Book, findings: Findings) -> Revision | None:
    classes: dict[str, PriorityClass] = {c.meta.name: c for c in book.priorities.values()}
    claims = Claims("/data/pvc", {})
    selected = runtime("nodeSelector: {disk: nvme, pool: a}")
    return render(isvc(MODEL + predictor), selected, claims, EMBEDDED, findings, priorities=classes)


def test_it_is_applied_listed_and_deleted_without_a_spec() -> None:
    book = Book()
    applied = book.apply(document("high", 1000, description="first"), "now", "uid")
    assert (applied.verb, applied.document["value"], applied.document["metadata"]["generation"]) == (
        "created",
        1000,
        1,
    )
    assert book.apply(document("high", 1000, description="first"), "now", "uid").verb == "unchanged"
    again = book.apply(document("high", 1000, description="other"), "now", "uid")
    assert (again.verb, again.document["metadata"]["generation"]) == ("configured", 2)
    other = Book()
    key = other.restore(again.document)
    assert other.priorities[key].value == 1000
    assert book.delete(ObjectKey("PriorityClass", "", "high"))
    assert not book.priorities


def test_what_the_api_server_would_refuse_is_refused_with_a_remedy() -> None:
    book = Book()
    book.apply(document("high", 1000, globalDefault=True), "now", "uid")
    assert "can't be changed from 1000 (is 2000)" in refusal(book, document("high", 2000))
    assert "can't be changed from PreemptLowerPriority" in refusal(
        book, document("high", 1000, globalDefault=True, preemptionPolicy="Never")
    )
    inside = document("placed", 1)
    inside["metadata"]["namespace"] = "default"
    said = refusal(book, inside)
    assert "metadata.namespace: a PriorityClass is of the whole cluster and has none (is 'default')" in said
    assert "leave it out" in said
    assert "high is the default already" in refusal(book, document("low", 1, globalDefault=True))
    assert "at most 1000000000" in refusal(book, document("most", 2_000_000_000))
    assert "Kubernetes' own" in refusal(book, document("system-mine", 5))
    assert "must be an integer" in refusal(book, document("text", "5"))
    assert "use one of PreemptLowerPriority, Never" in refusal(
        book, document("x", 5, preemptionPolicy="Maybe")
    )
    assert "value: is missing" in refusal(book, document("none", None))


def test_a_service_takes_priority_policy_and_labels_from_what_it_names() -> None:
    book = Book()
    book.apply(document("high", 1000), "now", "uid")
    book.apply(document("patient", 500, preemptionPolicy="Never"), "now", "uid")
    revision = made("priorityClassName: high\nnodeSelector: {pool: b}", book, Findings())
    assert revision is not None
    assert (revision.priority, revision.preempts) == (1000, True)
    assert revision.node_selector == (("disk", "nvme"), ("pool", "b")), "the service's own wins"
    patient = made("priorityClassName: patient", book, Findings())
    assert patient is not None
    assert (patient.priority, patient.preempts) == (500, False)
    nothing = made("", book, Findings())
    assert nothing is not None
    assert (nothing.priority, nothing.preempts) == (0, False)
    critical = made("priorityClassName: system-cluster-critical", book, Findings())
    assert critical is not None
    assert critical.priority == 2_000_000_000


def test_an_unknown_class_is_named_with_the_nearest_known_one() -> None:
    book = Book()
    book.apply(document("high", 1000), "now", "uid")
    findings = Findings()
    assert made("priorityClassName: hihg", book, findings) is None
    (problem,) = findings.problems
    assert problem.field == "spec.predictor.priorityClassName"
    assert "there is no such PriorityClass" in problem.what
    assert "high" in problem.remedy


def test_the_default_class_is_that_of_services_which_name_none() -> None:
    book = Book()
    book.apply(document("usual", 7, globalDefault=True), "now", "uid")
    revision = made("", book, Findings())
    assert revision is not None
    assert (revision.priority, revision.preempts) == (7, True)
