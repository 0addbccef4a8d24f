"""Objects -> revisions, routes and status: what KServe's and Knative's controllers do, for the embedded cluster.

One look at a service renders it, lets rollout.py decide, and gives back everything to write as one batch, so that a
crash never leaves half of it. Decisions are in kserve_ext/api; here they are put together with what is known. Only
this file's caller writes the keys objects/, rollouts/, revisions/ and routes/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import msgspec

from autoscaler_shim.objects.book import Book, ObjectKey
from kserve_ext.api.knative.autoscaler_config import EMBEDDED, AutoscalerConfig
from kserve_ext.api.kserve import conditions, kv_transfer, render, rollout, selection
from kserve_ext.api.kserve.conditions import Outcome
from kserve_ext.api.kserve.inference_service import InferenceService
from kserve_ext.api.kserve.kv_transfer import Facts, Verdict
from kserve_ext.api.kserve.rollout import Observed, Rollout
from kserve_ext.api.kserve.storage import Claims
from kserve_ext.api.problems import Findings, Problem
from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import RevisionKey

Items = list[tuple[str, bytes | None]]
ISVC: Final = "InferenceService"
#: Folder problem -> "" or what is wrong with it; (path, does our own server load it).
FolderCheck = Callable[[str, bool], str]


@dataclass(slots=True)
class Reconciler:
    """Rollouts and observations of all services. Synchronous: the caller writes what it returns."""

    book: Book
    claims: Claims
    domain: str
    address: str  # http://host:port where clients reach the Dispatch functions
    check_folder: FolderCheck
    config: AutoscalerConfig = EMBEDDED
    #: Why no node could ever run an instance of it, "" if one could or if that isn't known.
    too_large: Callable[[Revision], str] = lambda revision: ""
    #: What the ready instances of a revision say of their KV channels, by instance.
    channels: Callable[[RevisionKey], Sequence[tuple[str, Facts]]] = lambda revision: ()
    rollouts: dict[ObjectKey, Rollout] = field(default_factory=dict)
    observed: dict[RevisionKey, Observed] = field(default_factory=dict)
    outcomes: dict[ObjectKey, Outcome] = field(default_factory=dict)
    #: Time at which a service has to be looked at again without any news.
    timers: dict[ObjectKey, float] = field(default_factory=dict)

    def hosts(self, key: ObjectKey) -> tuple[str, str]:
        return (
            f"{key.name}.{key.namespace}.{self.domain}",
            f"{key.name}-predictor.{key.namespace}.{self.domain}",
        )

    def observe(self, revision: RevisionKey, value: bytes | None) -> ObjectKey | None:
        """News of a revision; returns the service to look at."""
        if value is None:
            self.observed.pop(revision, None)
        else:
            known = json.loads(value)
            self.observed[revision] = Observed(**{f: known[f] for f in Observed._fields if f in known})
        return next((key for key, r in self.rollouts.items() if revision in r.revisions), None)

    def delete(self, key: ObjectKey) -> Items:
        """The service is gone: its revisions drain, its hosts are unknown; the numbers are kept."""
        done = rollout.stop(self.rollouts.get(key, Rollout()))
        self.rollouts[key] = done.rollout
        self.outcomes.pop(key, None)
        self.timers.pop(key, None)
        items: Items = [(f"routes/{host}", None) for host in self.hosts(key)]
        items += [(f"revisions/{revision}", None) for revision in done.delete]
        items.append((key.store_key, None))
        items.append(self._rollout_item(key))
        return items

    def reconcile(self, key: ObjectKey, now: float) -> Items:
        """One look at one service."""
        service = self.book.services.get(key)
        if service is None:
            return []
        old = self.rollouts.get(key, Rollout())
        outcome = self._outcome(key, service, old)
        items: Items = []
        if outcome.stopped:
            done = rollout.stop(old)
        else:
            done = rollout.step(old, None if outcome.problems else outcome.revision, self.observed, now)
        if done.put is not None:
            items.append((f"revisions/{done.put.key}", msgspec.msgpack.encode(done.put)))
        before = self.outcomes.get(key)
        turned = before is not None and before.stopped != outcome.stopped
        if turned or done.rollout.serving != old.serving or key not in self.rollouts:
            # Without a revision the host is known all the same: its requests are told why (None = stopped).
            targets = ((done.rollout.serving, 100),) if done.rollout.serving else ()
            value = msgspec.msgpack.encode(None if outcome.stopped else targets)
            items += [(f"routes/{host}", value) for host in self.hosts(key)]
        items += [(f"revisions/{revision}", None) for revision in done.delete]
        self.rollouts[key] = done.rollout
        if done.rollout != old:
            items.append(self._rollout_item(key))
        self.timers.pop(key, None)
        if done.again_at:
            self.timers[key] = done.again_at
        outcome = outcome._replace(rollout=done.rollout)
        outcome = outcome._replace(kv_transfer=self._kv_transfer(key, outcome))
        self.outcomes[key] = outcome
        document = self.book.documents[key]
        status = conditions.status(
            outcome, self.observed, document.get("status") or {}, document["metadata"]["generation"], iso(now)
        )
        changed = self.book.set_status(key, status)
        if changed is not None:
            items.append((key.store_key, json.dumps(changed).encode()))
        return items

    def related(self, key: ObjectKey) -> list[ObjectKey]:
        """Services whose outcome depends on this object: all for a runtime, the group's for a service."""
        if key.kind != ISVC:
            return sorted(k for k in self.book.services if not key.namespace or k.namespace == key.namespace)
        return sorted(k for k in self.book.services if k.namespace == key.namespace and self._group(k))

    def restore(self, items: Iterable[tuple[str, bytes]], now: float) -> tuple[str, ...]:
        """rollouts/, status/, ... of the store. Returns revisions/ keys that belong to no service any more."""
        revisions: set[str] = set()
        for key, value in items:
            prefix, _, rest = key.partition("/")
            if prefix == "rollouts":
                namespace, _, name = rest.partition("/")
                stored = msgspec.json.decode(value, type=Rollout)
                self.rollouts[ObjectKey(ISVC, namespace, name)] = rollout.restored(stored, now)
            elif prefix == "status":
                self.observe(RevisionKey(rest), value)
            elif prefix == "revisions":
                revisions.add(rest)
        wanted = {revision for r in self.rollouts.values() for revision in r.revisions}
        return tuple(sorted(f"revisions/{rest}" for rest in revisions - wanted))

    def _rollout_item(self, key: ObjectKey) -> tuple[str, bytes]:
        return f"rollouts/{key.namespace}/{key.name}", msgspec.json.encode(self.rollouts[key])

    def _group(self, key: ObjectKey) -> str:
        outcome = self.outcomes.get(key)
        return outcome.revision.group if outcome and outcome.revision else ""

    def _outcome(self, key: ObjectKey, service: InferenceService, old: Rollout) -> Outcome:
        findings = Findings()
        chosen = selection.select(service, self.book.runtimes.values())
        if service.model is not None and chosen.runtime is None:
            word = "modelFormat" if chosen.reason == "NoSupportingRuntime" else "runtime"
            problem = Problem(f"{service.field}.{word}", chosen.message, chosen.remedy)
            return Outcome(old, None, failure=chosen.reason, problems=(problem,), stopped=service.stopped)
        runtime = chosen.runtime
        field_name = ""
        if runtime is not None:
            field_name = "clusterServingRuntimeName" if runtime.cluster else "servingRuntimeName"
        priorities = {c.meta.name: c for c in self.book.priorities.values()}
        revision = render.render(service, runtime, self.claims, self.config, findings, priorities=priorities)
        if revision is not None and rollout.fingerprint(revision) != old.fingerprint:
            self._check_model(service, revision, findings)
        prefill = revision is not None and revision.role == "prefill"
        return Outcome(
            old,
            revision,
            runtime_field=(field_name, runtime.meta.name if runtime else ""),
            failure="" if findings else conditions.INVALID,
            problems=tuple(findings.problems),
            warnings=tuple(findings.warnings),
            stopped=service.stopped,
            url="" if prefill else f"http://{self.hosts(key)[0]}",
            address=self.address,
            incomplete=self._incomplete(key, revision) if revision else "",
            too_large=self.too_large(revision) if revision else "",
        )

    def _check_model(self, service: InferenceService, revision: Revision, findings: Findings) -> None:
        """Looked at when a revision would be made, not later: what runs has its model already."""
        if not revision.model.path:
            return
        wrong = self.check_folder(revision.model.path, bool(revision.command.zygote))
        claim = self.claims.unmapped(service.storage_uri) if wrong else ""
        folder = self.claims.folder(claim)
        if claim and self.check_folder(folder, False):
            remedy = f"galaxy down, then galaxy up --pvc {claim}=FOLDER; or put the model below {folder}"
            what = f"claim {claim} is not mapped to a folder"
            findings.problem(service.uri_field, what, remedy, service.storage_uri)
        elif wrong:
            remedy = "correct the path, or put the model there"
            findings.problem(service.uri_field, wrong, remedy, service.storage_uri)

    def _kv_transfer(self, key: ObjectKey, outcome: Outcome) -> Verdict | None:
        """Of the decode service of its group, whichever of the two it is."""
        revision = outcome.revision
        if revision is None or not revision.group or outcome.incomplete:
            return None
        decode = [outcome] if revision.role == "decode" else []
        decode += [
            o
            for k, o in self.outcomes.items()
            if k != key
            and o.revision is not None
            and o.revision.group == revision.group
            and o.revision.role == "decode"
        ]
        serving = next((o.rollout.serving for o in decode), None)
        return kv_transfer.verdict(self.channels(serving) if serving else ())

    def _incomplete(self, key: ObjectKey, revision: Revision) -> str:
        """Why the group of this revision cannot serve yet, "" if it can."""
        if not revision.group:
            return ""
        name = revision.group.partition("/")[2]
        other = "decode" if revision.role == "prefill" else "prefill"
        mates = {
            k: o.revision.role
            for k, o in self.outcomes.items()
            if k != key and o.revision is not None and o.revision.group == revision.group
        }
        same = sorted(k.name for k, role in mates.items() if role == revision.role)
        if same:
            return f"group {name} has several {revision.role} services ({', '.join(same)}); keep one"
        if other not in mates.values():
            return (
                f"group {name} has no {other} service; apply one with kserve-galaxy.io/role: {other} "
                f"and kserve-galaxy.io/pd-group: {name}"
            )
        return ""


def iso(now: float) -> str:
    """Unix seconds as Kubernetes writes times."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
