"""The patches by which a pod changes hands: a late one undoes nothing that others have done meanwhile."""

from __future__ import annotations

import pytest

from kserve_ext.api.standby import assigning, names
from tests.support.api_objects import Obj, Refused, json_patch


def pod(**labels: str) -> Obj:
    return {"metadata": {"name": "p", "uid": "u", "labels": {"a": "b", **labels}}}


def test_a_held_pod_is_let_go_and_then_like_any_other() -> None:
    held = pod(**{names.ADOPTION: names.HELD})
    guarded = json_patch(held, assigning.guarded("u"))
    assert guarded["metadata"]["labels"][names.ADOPTION] == names.GUARDED
    assert json_patch(guarded, assigning.settled("u")) == pod()


def test_whoever_comes_late_changes_nothing() -> None:
    for patch in (assigning.guarded("u"), assigning.settled("u"), assigning.guarded("another")):
        with pytest.raises(Refused):
            json_patch(pod(), patch)
    with pytest.raises(Refused):
        json_patch(pod(**{names.ADOPTION: names.HELD}), assigning.settled("u"))
