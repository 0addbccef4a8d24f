"""What `galaxy doctor` finds in a Kubernetes cluster: parts of ours, standby pods, agents of nodes, the webhook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kserve_ext.cli.failure import Failure
from kserve_ext.cli.findings import Finding
from kserve_ext.cli.knative import overview

Document = dict[str, Any]
#: An agent answers each of its autoscalers' questions within 20 s.
SILENT_S: Final = 60.0


def cluster(context: str, namespace: str) -> Iterator[Finding]:
    try:
        facts = overview.look(context, namespace)
    except Failure as failure:
        yield Finding("failed", f"{failure.message}: {failure.why}", failure.do)
        return
    yield from findings(facts)


def findings(facts: Document) -> Iterator[Finding]:
    """`facts`: of overview.look."""
    ours = [part["part"] for part in facts["parts"] if part["whose"] == "ours"]
    yield Finding("ok", f"ours in {facts['namespace']}: {', '.join(ours) or 'nothing'}")
    hook = facts["webhook"]
    if hook["present"] and not hook["failing"]:
        yield Finding("ok", f"webhook: {hook['pods']}")
    for why in hook.get("failing") or ():
        what, _, do = why.partition(": ")
        yield Finding("warning", f"webhook: {what}", do)
    yield from _standby(facts["standby"])


def _standby(facts: Document) -> Iterator[Finding]:
    if facts.get("error"):
        yield Finding(
            "warning", f"standby pods can't be looked at: {facts['error']}", "ask for that permission"
        )
        return
    for agent in facts.get("agents") or ():
        name = f"agent of node {agent['node'] or '(none yet)'}"
        do = f"kubectl logs -n knative-serving {agent['pod']}"
        if agent["ready"] != "True":
            yield Finding("failed", f"{name} is not ready: {agent['why'] or 'it has just begun'}", do)
        elif agent["heard_s"] is None or agent["heard_s"] > SILENT_S:
            yield Finding("warning", f"{name} is heard by no autoscaler: its standby pods can't be taken", do)
        else:
            yield Finding("ok", f"{name} was heard {agent['heard_s']:g} s ago")
    for pool in facts.get("pools") or ():
        name = f"standby pool {pool['pool']} in {pool['namespace']}"
        if pool["amiss"]:
            why = pool["why"] or "its pods are still coming"
            do = "see the condition StandbyReady of its PodAutoscalers: galaxy explain NAME -n NAMESPACE"
            yield Finding("warning", f"{name} has {pool['free']} of {pool['wanted']} pods: {why}", do)
        else:
            used = f", {pool['taken']} in use" if pool["taken"] else ""
            why = f": {pool['why']}" if pool["why"] else ""
            yield Finding("ok", f"{name}: {pool['free']} free of {pool['wanted']}{used}{why}")
    for unfit in facts.get("unfit") or ():
        yield Finding(
            "warning", f"{unfit['revision']} can have no standby pods: {unfit['why']}", "docs/standby.md"
        )
    for error in facts.get("errors") or ():
        yield Finding("warning", f"not seen: {error}", "ask for that permission")
