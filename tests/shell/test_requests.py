"""The ring of request records."""

from __future__ import annotations

from activator_replacement.requests import KEPT, Requests
from kserve_ext.core.ids import RevisionKey

KEY = RevisionKey("ns/a-1")


def test_the_newest_are_kept_and_the_oldest_forgotten() -> None:
    requests = Requests()
    for k in range(KEPT + 3):
        requests.open(b"r%d" % k, KEY, 0)
    assert [requests.find(f"r{k}") != {} for k in (0, 2, 3, KEPT + 2)] == [False, False, True, True]


def test_a_repeated_id_replaces_its_record_and_counts_as_new() -> None:
    requests = Requests()
    requests.open(b"again", KEY, 1)
    for k in range(KEPT - 1):
        requests.open(b"r%d" % k, KEY, 0)
    requests.open(b"again", KEY, 2).mark("held")
    requests.open(b"one more", KEY, 0)
    assert requests.find("r0") == {}, "not the repeated one is the oldest"
    found = requests.find("again")
    assert found["held_bytes"] == 2
    assert [name for name, _, _ in found["marks"]] == ["arrived", "held"]


def test_an_id_of_any_bytes_can_be_asked_for() -> None:
    requests = Requests()
    requests.open(b"\xe9t\xe9", KEY, 0)
    assert requests.find("été")["revision"] == KEY
    assert requests.find("日本") == {}
