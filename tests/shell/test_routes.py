"""Routes: hosts, splits, named revisions, what is said when nothing fits; and that a look-up stays cheap."""

from __future__ import annotations

import msgspec
import pytest

from activator_replacement.refusals import NEVER
from activator_replacement.routes import Routes
from activator_replacement.seam import Refusal
from kserve_ext.core.facts import Command, Model, Resources, Revision, Role, Scale
from kserve_ext.core.ids import RevisionKey


def revision(name: str, role: Role = "unified", group: str = "", created_at: float = 0.0) -> Revision:
    key = RevisionKey(f"ns/{name}")
    service = f"ns/{name.rpartition('-')[0]}"
    return Revision(
        key,
        service,
        1,
        Command(("serve",)),
        Model(),
        Resources(),
        Scale(),
        role=role,
        group=group,
        created_at=created_at,
    )


class Told:
    """Routes that were told things as a store tells them, and what they said of revisions."""

    def __init__(self) -> None:
        self.heard: list[tuple[RevisionKey, bool, bool]] = []
        self.routes = Routes(lambda k, r, created: self.heard.append((k, r is not None, created)))

    def scanned(self, *revisions: Revision, **hosts: dict[str, int]) -> Routes:
        self.routes._all_revisions({f"revisions/{r.key}": msgspec.msgpack.encode(r) for r in revisions})
        self.routes._all_routes({f"routes/{host}.local": targets(by_name) for host, by_name in hosts.items()})
        return self.routes


def targets(by_name: dict[str, int]) -> bytes:
    return msgspec.msgpack.encode([(f"ns/{name}", percent) for name, percent in by_name.items()])


def refusal(routes: Routes, host: bytes, *named: bytes | None) -> Refusal:
    found = routes.resolve(host, *(named or (None, None)))
    assert isinstance(found, Refusal)
    return found


@pytest.mark.parametrize("percents", [{"a-1": 90, "a-2": 10}, {"a-1": 0, "a-2": 100}, {"a-1": 33, "a-2": 67}])
def test_any_hundred_in_a_row_are_split_exactly(percents: dict[str, int]) -> None:
    routes = Told().scanned(*map(revision, percents), a=percents)
    taken = [routes.resolve(b"a.local", None, None) for _ in range(250)]
    for start in range(150):
        window = taken[start : start + 100]
        assert {name: window.count(RevisionKey(f"ns/{name}")) for name in percents} == percents


def test_a_host_is_found_with_its_port_and_in_any_case() -> None:
    routes = Told().scanned(revision("a-1"), revision("b-1"), a={"a-1": 100}, b={"b-1": 100})
    for host in (b"a.local", b"a.local:8080", b"A.Local:8080"):
        assert routes.resolve(host, None, None) == "ns/a-1"
    assert routes.resolve(b"a.local", b"ns", b"b-1") == "ns/b-1"


def test_an_address_means_the_only_service_while_there_is_one() -> None:
    told = Told()
    routes = told.scanned(revision("a-1"), revision("p-1", "prefill", "ns/a"), a={"a-1": 100}, p={"p-1": 100})
    for host in (b"127.0.0.1:8080", b"localhost", b"[::1]:8080"):
        assert routes.resolve(host, None, None) == "ns/a-1"
    routes._revision_changed("revisions/ns/b-1", msgspec.msgpack.encode(revision("b-1")))
    assert routes.resolve(b"localhost", None, None) == "ns/a-1", "no route leads to the other one yet"
    routes._route_changed("routes/b.local", targets({"b-1": 100}))
    assert "known are a.local, b.local" in refusal(routes, b"localhost").reason
    routes._route_changed("routes/b.local", None)
    assert routes.resolve(b"localhost", None, None) == "ns/a-1"
    routes._revision_changed("revisions/ns/a-1", None)
    assert refusal(routes, b"localhost").status == 404


def test_the_routes_are_looked_through_once_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"s{k}-1" for k in range(50)]
    routes = Told().scanned(*map(revision, names), **{n: {n: 100} for n in names})
    looked: list[str] = []

    def is_open(key: str) -> bool:
        looked.append(key)
        return True

    monkeypatch.setattr(routes, "_open", is_open)
    for _ in range(10):
        assert refusal(routes, b"127.0.0.1").status == 404
    assert len(looked) == 50


def test_nothing_is_unknown_before_both_scans_have_come() -> None:
    told = Told()
    assert refusal(told.routes, b"a.local").status == 503
    told.routes._all_revisions({})
    assert refusal(told.routes, b"a.local").status == 503
    assert refusal(told.routes, b"", b"ns", b"a-1").status == 503
    told.routes._all_routes({})
    assert refusal(told.routes, b"a.local").status == 404
    assert "galaxy apply" in refusal(told.routes, b"a.local").reason
    assert refusal(told.routes, b"", b"ns", b"a-1").status == 404


def test_a_route_without_targets_takes_nothing() -> None:
    routes = Told().scanned(revision("a-1"), a={"a-1": 100})
    routes._route_changed("routes/a.local", targets({}))
    assert refusal(routes, b"a.local").status == 503


def test_a_rescan_tells_what_came_and_went() -> None:
    told = Told()
    told.scanned(revision("a-1"), revision("b-1"))
    told.routes._revision_changed("revisions/ns/c-1", msgspec.msgpack.encode(revision("c-1")))
    told.heard.clear()
    told.scanned(revision("b-1"), revision("c-1"), revision("d-1"))
    assert told.heard == [("ns/a-1", False, False), ("ns/d-1", True, False)]


def test_the_newest_prefill_revision_of_a_group() -> None:
    told = Told()
    routes = told.scanned(
        revision("p-1", "prefill", "ns/g", 1.0),
        revision("p-2", "prefill", "ns/g", 2.0),
        revision("q-1", "prefill", "ns/h", 3.0),
    )
    newest = routes.prefill_of("ns/g")
    assert newest is not None
    assert newest.key == "ns/p-2"
    routes._revision_changed("revisions/ns/p-2", None)
    older = routes.prefill_of("ns/g")
    assert older is not None
    assert older.key == "ns/p-1"
    routes._revision_changed("revisions/ns/p-1", None)
    assert routes.prefill_of("ns/g") is None


def test_prefill_goes_to_the_revision_that_has_the_traffic_not_to_the_newest() -> None:
    """A roll-out whose new revision never gets ready must not take prefill away."""
    old, new = revision("p-1", "prefill", "ns/g", 1.0), revision("p-2", "prefill", "ns/g", 2.0)
    routes = Told().scanned(old, new, p={"p-1": 100})
    assert routes.prefill_of("ns/g") == old
    routes._route_changed("routes/p.local", targets({"p-2": 100}))
    assert routes.prefill_of("ns/g") == new
    routes._all_routes({"routes/p.local": targets({"p-1": 100})})
    assert routes.prefill_of("ns/g") == old


def test_who_has_the_traffic_is_told_once_each_and_forgotten_with_the_route() -> None:
    heard: list[str] = []
    routes = Routes(lambda key, r, created: None, heard.append)
    for host in ("a.local", "a-predictor.local"):
        routes._route_changed(f"routes/{host}", targets({"a-1": 100}))
    routes._route_changed("routes/a.local", targets({"a-1": 50, "a-2": 50}))
    assert heard == ["ns/a-1", "ns/a-1", "ns/a-2"]
    assert set(routes.routed) == {"ns/a-1", "ns/a-2"}
    routes._all_routes({})
    assert routes.routed == {}


def test_a_service_without_a_revision_is_known_and_says_where_to_look() -> None:
    routes = Told().scanned(revision("a-00001"), a={"a-00001": 100}, broken={})
    found = routes.resolve(b"broken.local", None, None)
    assert isinstance(found, Refusal)
    assert found.status == 503
    assert "no revision that can serve" in found.reason
    routes._route_changed("routes/broken.local", None)
    gone = routes.resolve(b"broken.local", None, None)
    assert isinstance(gone, Refusal)
    assert gone.status == 404


def test_a_stopped_service_names_the_annotation_and_no_time_to_retry() -> None:
    routes = Told().scanned(revision("a-00001"), a={"a-00001": 100})
    routes._route_changed("routes/a.local", msgspec.msgpack.encode(None))
    found = refusal(routes, b"a.local:8080")
    assert (found.status, found.retry_after_s) == (503, NEVER)
    assert "serving.kserve.io/stop" in found.reason
    assert "known are a.local" in refusal(routes, b"b.local").reason
    routes._route_changed("routes/a.local", targets({"a-00001": 100}))
    assert routes.resolve(b"a.local", None, None) == "ns/a-00001"
    routes._all_routes({"routes/a.local": msgspec.msgpack.encode(None)})
    assert "serving.kserve.io/stop" in refusal(routes, b"a.local").reason


def test_the_host_of_a_groups_decode_service() -> None:
    prefill = revision("p-00001", "prefill", "ns/g")
    decode = revision("d-00001", "decode", "ns/g")
    routes = Told().scanned(prefill, decode, p={"p-00001": 100}, d={"d-00001": 100})
    assert routes.decode_host("ns/g") == "d.local"
    assert routes.decode_host("ns/other") == ""
