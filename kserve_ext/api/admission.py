"""What the webhook answers: an AdmissionReview v1 in, its response out.

`validate` refuses what the table of annotations refuses, each problem with field and remedy, and warns of what has no
effect. On an update only what is new is refused: whatever was stored before has to stay changeable, by controllers
that take a finalizer out of it, too. What Knative's controller makes of an object that was judged isn't judged again,
but that a revision's instances have read can't change any more. `mutate` sets target-burst-capacity -1 on revisions
that are opted in, and on nothing above them: a revision that is new changes nothing that runs, whereas a template
that changes makes a revision (docs/decisions/0027).
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from kserve_ext.api import annotations as table
from kserve_ext.api.annotations import BY_NAME, PREFIX
from kserve_ext.api.knative import autoscaling
from kserve_ext.api.problems import Findings, Problem, nearest

Object = dict[str, Any]
DOCS: Final = "docs/annotations.md has all keys"
VERSION: Final = "admission.k8s.io/v1"
ENGINE: Final = PREFIX + "engine"
BURST: Final = autoscaling.PREFIX + "target-burst-capacity"
#: In the order in which Knative looks for it.
_BURST_ROW: Final = autoscaling.TABLE["target-burst-capacity"]
_BURSTS: Final = (BURST, autoscaling.PREFIX + _BURST_ROW.alias)
_KNATIVE: Final = "serving.knative.dev/"
_MODE: Final = "serving.kserve.io/deploymentMode"
_WITHOUT_KNATIVE: Final = ("RawDeployment", "Standard", "ModelMesh")
#: What a pair of prefill and decode does is nothing to a service that is in none.
_OF_GROUPS: Final = ("pd", "pd-threshold-tokens", "pd-ratio", "kv-transfer", "kv-transfer-required")
#: The API server cuts a warning that is longer.
_LONGEST: Final = 256

Path = tuple[str, ...]
_OWN: Final[Path] = ("metadata", "annotations")
_PREDICTOR: Final[Path] = ("spec", "predictor", "annotations")
_TEMPLATE: Final[Path] = ("spec", "template", "metadata", "annotations")


class Place(NamedTuple):
    """Where objects of a kind have annotations."""

    #: What counts; the later wins.
    merged: tuple[Path, ...]
    #: Where they are checked, and do nothing.
    idle: tuple[Path, ...] = ()


#: (group, kind) -> its places.
PLACES: Final[Mapping[tuple[str, str], Place]] = {
    ("serving.kserve.io", "InferenceService"): Place(
        (_OWN, _PREDICTOR),
        (("spec", "transformer", "annotations"), ("spec", "explainer", "annotations")),
    ),
    ("serving.kserve.io", "ServingRuntime"): Place((("spec", "annotations"),), (_OWN,)),
    ("serving.kserve.io", "ClusterServingRuntime"): Place((("spec", "annotations"),), (_OWN,)),
    ("serving.knative.dev", "Service"): Place((_TEMPLATE,), (_OWN,)),
    ("serving.knative.dev", "Configuration"): Place((_TEMPLATE,), (_OWN,)),
    ("serving.knative.dev", "Revision"): Place((_OWN,)),
}


class Notes(NamedTuple):
    """The annotations of one object that count."""

    merged: dict[str, str]
    where: dict[str, str]  # by name of ours

    @property
    def opted_in(self) -> bool:
        return self.merged.get(ENGINE) == "galaxy"

    def field(self, name: str) -> str:
        return f"{self.where[name]}[{PREFIX}{name}]"


class Malformed(ValueError):
    """It is no AdmissionReview of version v1."""


class Answer(NamedTuple):
    problems: tuple[Problem, ...] = ()  # any: it is refused
    warnings: tuple[str, ...] = ()
    patch: tuple[Object, ...] = ()  # operations of RFC 6902

    @property
    def outcome(self) -> str:
        """denied, patched, warned or untouched."""
        if self.problems:
            return "denied"
        return "patched" if self.patch else "warned" if self.warnings else "untouched"


class Request(NamedTuple):
    uid: str
    group: str
    kind: str
    operation: str  # CREATE, UPDATE
    new: Object
    old: Object  # {} where there was none

    @property
    def title(self) -> str:
        """For messages."""
        metadata = _map(self.new.get("metadata"))
        return f"{self.kind} {metadata.get('namespace', '')}/{metadata.get('name', '')}"


def read(review: Any) -> Request:
    """Raises Malformed."""
    if not isinstance(review, dict) or review.get("apiVersion") != VERSION:
        raise Malformed(f"expected an AdmissionReview of {VERSION}")
    request = _map(review.get("request"))
    kind, uid = _map(request.get("kind")), request.get("uid")
    if not isinstance(uid, str) or not uid or not isinstance(request.get("object"), dict):
        raise Malformed("the request of the AdmissionReview has no uid or no object")
    group, name, operation = map(str, (kind.get("group"), kind.get("kind"), request.get("operation")))
    return Request(uid, group, name, operation, request["object"], _map(request.get("oldObject")))


def response(uid: str, answer: Answer) -> Object:
    """The AdmissionReview that says so."""
    said: Object = {"uid": uid, "allowed": not answer.problems}
    if answer.problems:
        message = "; and ".join(str(problem) for problem in answer.problems)
        said["status"] = {"code": 422, "reason": "Invalid", "message": f"{message} ({DOCS})"}
    elif answer.patch:
        said |= {"patchType": "JSONPatch", "patch": b64encode(json.dumps(answer.patch).encode()).decode()}
    if answer.warnings:
        said["warnings"] = [_short(text) for text in answer.warnings]
    return {"apiVersion": VERSION, "kind": "AdmissionReview", "response": said}


def mutate(request: Request) -> Answer:
    notes = _at(request.new, _OWN)
    fits = (request.group, request.kind) == ("serving.knative.dev", "Revision") and not _leaving(request)
    if not fits or notes.get(ENGINE) != "galaxy" or any(key in notes for key in _BURSTS):
        return Answer()
    path = "/metadata/annotations/" + BURST.replace("/", "~1")
    return Answer(patch=({"op": "add", "path": path, "value": "-1"},))


def validate(request: Request) -> Answer:
    place = PLACES.get((request.group, request.kind))
    if place is None or _leaving(request):
        return Answer()
    if not any(_may_be_ours(key) for obj in (request.new, request.old) for key in _keys(obj, place)):
        return Answer()
    findings = Findings()
    if request.old and request.kind == "Revision":
        _unchanged(_at(request.old, _OWN), _at(request.new, _OWN), findings)
    if not _made_by_knative(request.new):
        now, before = _judged(request, request.new, place), _judged(request, request.old, place)
        known = set(before.problems)
        for problem in now.problems:
            if problem in known:
                findings.warn(f"{problem} (as it was)")
            else:
                findings.problems.append(problem)
        for text in now.warnings:
            findings.warn(text)
    return Answer(tuple(findings.problems), tuple(findings.warnings))


# --- inside


def _judged(request: Request, obj: Object, place: Place) -> Findings:
    findings = Findings()
    notes = Notes({}, dict.fromkeys(BY_NAME, ".".join(place.merged[-1])))
    for path in (*place.merged, *place.idle):
        here, where = _at(obj, path), ".".join(path)
        table.read(here, findings, where, "Knative")
        _almost_ours(here, where, findings)
        for key in (key for key in here if key.startswith(PREFIX)):
            if path in place.merged:
                notes.where[key.removeprefix(PREFIX)] = where
            elif notes.merged.get(key) != here[key]:
                there = f", which says {notes.merged[key]}" if key in notes.merged else ""
                findings.warn(
                    f"{where}[{key}]: does nothing here; write it at {'.'.join(place.merged[-1])}{there}"
                )
        if path in place.merged:
            notes.merged.update(here)
    if findings and not request.kind.endswith("ServingRuntime"):
        whole = request.group == "serving.knative.dev"
        settings = table.read(notes.merged, Findings())
        table.check_together(settings, findings, notes.field, complete=whole)
        if whole:
            _without_its_condition(notes, findings)
            if notes.opted_in and PREFIX + "standby-level" in notes.merged and not settings.standby:
                findings.warn(
                    f"{notes.field('standby-level')}: keeps no pods without {PREFIX}standby: N; only those that "
                    "other services of this shape keep are used"
                )
        else:
            _unseen_by_templates(obj, findings)
            mode = _at(obj, _OWN).get(_MODE)
            if notes.opted_in and mode in _WITHOUT_KNATIVE:
                findings.warn(
                    f"{notes.field('engine')}: does nothing with {_MODE}: {mode}, which makes no Knative revision"
                )
        _without_the_activator(notes, findings)
    return findings


def _unseen_by_templates(service: Object, findings: Findings) -> None:
    """KServe fills in its runtimes' templates from the metadata of the InferenceService, and from nothing else."""
    above, here = _at(service, _OWN), _at(service, _PREDICTOR)
    for row in table.TABLE:
        if row.by_template and row.key in here and above.get(row.key) != here[row.key]:
            findings.warn(
                f"{'.'.join(_PREDICTOR)}[{row.key}]: galaxy-vllm-prefill and -decode don't see it; "
                f"write it at {'.'.join(_OWN)}"
            )


def _without_its_condition(notes: Notes, findings: Findings) -> None:
    """What is right by itself and does nothing, for want of another annotation."""
    given = [name for name in BY_NAME if PREFIX + name in notes.merged]
    if given and not notes.opted_in:
        findings.warn(f"{notes.field(given[0])}: does nothing without {ENGINE}: galaxy")
    if "pd-group" not in given:
        for name in given:
            if name in _OF_GROUPS:
                findings.warn(f"{notes.field(name)}: does nothing without {PREFIX}pd-group")
    if notes.merged.get(PREFIX + "pd") == "never" and "pd-threshold-tokens" in given:
        findings.warn(f"{notes.field('pd-threshold-tokens')}: does nothing with {PREFIX}pd: never")


def _without_the_activator(notes: Notes, findings: Findings) -> None:
    given = next((key for key in _BURSTS if key in notes.merged), None)
    if notes.opted_in and given is not None and not _unlimited(notes.merged[given]):
        findings.warn(
            f"{given} is {notes.merged[given]}, not -1: while there is room to spare requests pass the activator "
            "by, and are not held, paired or sent by affinity"
        )


def _unlimited(text: str) -> bool:
    try:
        return bool(_BURST_ROW.reader.read(text) == -1)
    except ValueError:  # Knative's webhook refuses it
        return True


def _may_be_ours(key: str) -> bool:
    """The configuration of the webhook asks the same, so that others' objects aren't even sent."""
    return "galaxy" in key or key.startswith("kserve-g")


def _almost_ours(notes: Mapping[str, str], where: str, findings: Findings) -> None:
    """Keys that differ from one of ours before the slash. They may be somebody's, so they are only warned of."""
    for key in notes:
        prefix, slash, name = key.partition("/")
        if slash and prefix + slash != PREFIX and name in BY_NAME and nearest(prefix, [PREFIX[:-1]]):
            findings.warn(f"{where}[{key}]: is none of ours; did you mean {PREFIX}{name}?")


def _unchanged(old: Mapping[str, str], new: Mapping[str, str], findings: Findings) -> None:
    for row in table.TABLE:
        if row.fixed and old.get(row.key) != new.get(row.key):
            findings.problem(
                table.in_metadata(row.name),
                f"can't change from {old.get(row.key, 'not given')} on a revision, whose instances have read it",
                f"change {'.'.join(_TEMPLATE)} of its Service, or its InferenceService, for a new revision",
                new.get(row.key),
            )


def _leaving(request: Request) -> bool:
    return bool(_map(request.new.get("metadata")).get("deletionTimestamp"))


def _made_by_knative(obj: Object) -> bool:
    owners = _map(obj.get("metadata")).get("ownerReferences")
    return any(
        _map(owner).get("controller") is True and str(_map(owner).get("apiVersion")).startswith(_KNATIVE)
        for owner in (owners if isinstance(owners, list) else ())
    )


def _keys(obj: Object, place: Place) -> Iterator[str]:
    for path in (*place.merged, *place.idle):
        yield from _at(obj, path)


def _at(obj: Object, path: Path) -> dict[str, str]:
    """The annotations there; what isn't text the API server refuses by itself."""
    found: Any = obj
    for name in path:
        found = _map(found).get(name)
    return {key: value for key, value in _map(found).items() if isinstance(value, str)}


def _map(value: Any) -> Object:
    return value if isinstance(value, dict) else {}


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
