"""Which revision prefills for a group, whatever comes and goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.knative.groups import Groups, Joined

OLD, NEW = RevisionKey("ns/prefill-00001"), RevisionKey("ns/prefill-00002")


def joined(created: str = "1", *, ready: bool = True, in_service: bool = True) -> Joined:
    return Joined("prefill", "chat", in_service, ready, created)


def test_a_new_revision_takes_over_when_it_is_ready() -> None:
    groups = Groups()
    groups.observe(OLD, "ns", joined("1"))
    groups.observe(NEW, "ns", joined("2", ready=False))
    assert groups.prefill_of("ns", "chat") == OLD
    groups.observe(NEW, "ns", joined("2"))
    assert groups.prefill_of("ns", "chat") == NEW
    groups.observe(OLD, "ns", joined("1", in_service=False))
    groups.forget(NEW)
    assert groups.prefill_of("ns", "chat") is None


def test_one_that_was_never_ready_is_better_than_none() -> None:
    groups = Groups()
    groups.observe(NEW, "ns", joined(ready=False))
    assert groups.prefill_of("ns", "chat") == NEW
    assert groups.prefill_of("other", "chat") is None


_JOINED = st.builds(
    Joined,
    role=st.sampled_from(["unified", "prefill", "decode"]),
    group=st.sampled_from(["", "a", "b"]),
    in_service=st.booleans(),
    ready=st.booleans(),
    created=st.sampled_from("123"),
)
_EVENTS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["x", "y"]), st.one_of(st.none(), _JOINED)), max_size=30
)


@given(_EVENTS)
def test_the_answer_is_that_of_a_search_through_all_there_are(
    events: list[tuple[int, str, Joined | None]],
) -> None:
    groups, known = Groups(), dict[RevisionKey, tuple[str, Joined]]()
    for number, namespace, what in events:
        key = RevisionKey(f"{namespace}/{number}")
        if what is None:
            groups.forget(key)
            known.pop(key, None)
        else:
            groups.observe(key, namespace, what)
            known[key] = namespace, what
    for namespace in ("x", "y"):
        for group in ("a", "b"):
            fits = {
                key: found
                for key, (where, found) in known.items()
                if where == namespace
                and found.role == "prefill"
                and found.group == group
                and found.in_service
            }
            answer = groups.prefill_of(namespace, group)
            assert (answer is None) == (not fits)
            if answer is not None:
                best = max((found.ready, found.created) for found in fits.values())
                assert (fits[answer].ready, fits[answer].created) == best
