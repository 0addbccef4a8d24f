"""The strategic merge and its undo: taking back is exact, whatever else has changed meanwhile."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.cli.knative.merging import merge, undo, without

names = st.sampled_from(["a", "b", "c"])
scalars = st.one_of(st.integers(0, 3), st.text("xy", min_size=1, max_size=2), st.booleans())
commands = st.lists(st.sampled_from(["x", "y"]), min_size=1, max_size=2)


def keyed(key: str, element: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """A list whose elements differ in `key`, in any order."""

    def together(elements: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: name, **fields} for name, fields in elements.items()]

    return st.dictionaries(names, element, min_size=1, max_size=3).map(together)


containers = st.fixed_dictionaries(
    {},
    optional={
        "image": scalars,
        "command": commands,
        "env": keyed("name", st.fixed_dictionaries({"value": scalars})),
        "volumeMounts": keyed("mountPath", st.fixed_dictionaries({"name": scalars})),
        "resources": st.dictionaries(names, st.dictionaries(names, scalars, min_size=1), min_size=1),
    },
)
templates = st.fixed_dictionaries(
    {},
    optional={
        "containers": keyed("name", containers),
        "volumes": keyed("name", st.fixed_dictionaries({}, optional={"emptyDir": st.just({})})),
        "replicas": scalars,
        "template": st.dictionaries(names, scalars, min_size=1),
    },
)


@given(templates, templates)
def test_undo_takes_back_exactly(base: dict[str, Any], patch: dict[str, Any]) -> None:
    assert merge(merge(base, patch), undo(base, patch)) == base


@given(templates, templates)
def test_a_patch_is_applied_once(base: dict[str, Any], patch: dict[str, Any]) -> None:
    once = merge(base, patch)
    assert merge(once, patch) == once


@given(templates, templates)
def test_undo_of_nothing_done_changes_nothing(base: dict[str, Any], patch: dict[str, Any]) -> None:
    assert merge(base, undo(base, patch)) == base


def test_what_changed_meanwhile_stays() -> None:
    base = {"containers": [{"name": "c", "image": "stock", "resources": {"cpu": 1}}]}
    patch = {"containers": [{"name": "c", "image": "ours"}], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    back = undo(base, patch)
    live = merge(base, patch)
    live["containers"][0]["resources"] = {"cpu": 2}
    live["volumes"].append({"name": "theirs"})
    assert merge(live, back) == {
        "containers": [{"name": "c", "image": "stock", "resources": {"cpu": 2}}],
        "volumes": [{"name": "theirs"}],
    }


def test_order_of_lists_stays() -> None:
    base = {"env": [{"name": "b", "value": 1}, {"name": "a", "value": 2}]}
    patch = {"env": [{"name": "c", "value": 3}, {"name": "a", "value": 4}]}
    assert [e["name"] for e in merge(base, patch)["env"]] == ["b", "a", "c"]
    assert merge(merge(base, patch), undo(base, patch))["env"] == base["env"]


def test_other_lists_are_replaced() -> None:
    assert merge({"command": ["a", "b"]}, {"command": ["c"]}) == {"command": ["c"]}
    assert undo({"command": ["a", "b"]}, {"command": ["c"]}) == {"command": ["a", "b"]}
    assert undo({}, {"command": ["c"]}) == {"command": None}


def test_a_field_left_out_of_an_undo() -> None:
    back = {"spec": {"containers": [{"name": "c", "image": "stock"}], "volumes": None}}
    assert without(back, "image") == {"spec": {"containers": [{"name": "c"}], "volumes": None}}
