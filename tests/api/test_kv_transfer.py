"""The condition KVTransferReady, from what decode instances say of their channels."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_ext.api.kserve.kv_transfer import MOST_NAMED, pair_text, verdict

RDMA = {"rung": "rdma", "ports": [{"device": "mlx5_0:1", "gid": "10.8.0.1", "mtu": 4096}]}
TCP = {"rung": "tcp"}


def pair(peer: str = "p-1", *rungs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"peer": peer, "rank": 0, "state": "up" if rungs else "down", "rungs": list(rungs), **more}


def says(*pairs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kv_transfer": "auto", "required": False, "peers": len(pairs), "pairs": list(pairs), **more}


def test_every_decode_has_a_channel_and_the_message_names_method_device_address_and_packet_size() -> None:
    found = verdict([("d-1", says(pair("p-1", RDMA, TCP))), ("d-2", says(pair("p-2", RDMA)))])
    assert found == (
        "True",
        "Rdma",
        "d-1 – p-1: rdma on mlx5_0:1 (10.8.0.1, MTU 4096); d-2 – p-2: rdma on mlx5_0:1 (10.8.0.1, MTU 4096)",
    )


def test_methods_that_differ_and_why_better_ones_were_passed_over() -> None:
    slow = pair("p-2", TCP, passed=["rdma: no RDMA device here"])
    found = verdict([("d-1", says(pair("p-1", RDMA), slow))])
    assert (found.status, found.reason) == ("True", "SeveralMethods")
    assert found.message.endswith("p-2: tcp [not rdma: no RDMA device here]")


def test_a_message_names_some_pairs_and_counts_the_others() -> None:
    found = verdict([("d", says(*(pair(f"p-{n}", TCP) for n in range(MOST_NAMED + 3))))])
    assert found.message.endswith("; and 3 more")
    assert found.reason == "Tcp"


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(
    ("reason", "detail", "expected"),
    [
        ("incompatible", "dtype: 'a' at prefill, 'b' at decode; set --dtype equal", "Incompatible"),
        ("incompatible", "no rung that both sides may use; rdma: no RDMA device here", "RungUnavailable"),
        ("unreachable", "127.0.0.1:9: refused", "Unreachable"),
    ],
)
def test_a_decode_without_a_channel_says_why(reason: str, detail: str, expected: str, required: bool) -> None:
    lacking = says(pair("p-1", reason=reason, detail=detail), required=required, kv_transfer="rdma")
    found = verdict([("d-1", says(pair("p-1", RDMA))), ("d-2", lacking)])
    assert (found.status, found.reason) == ("False", expected)
    assert found.message.startswith("d-2 – p-1: ")
    assert found.message.endswith(detail)
    assert ("kv-transfer is rdma: " in found.message) == (expected == "RungUnavailable")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (says(peers=0), "NoPeer"),
        (says(peers=None), "NoPeer"),
        (says({"peer": "p", "state": "dialling"}), "Dialling"),
    ],
)
def test_what_may_be_a_matter_of_time_is_false_only_where_a_transfer_is_required(
    facts: dict[str, Any], reason: str
) -> None:
    assert verdict([("d-1", facts)])[:2] == ("Unknown", reason)
    assert verdict([("d-1", {**facts, "required": True})])[:2] == ("False", reason)


def test_what_no_time_mends_is_told_first() -> None:
    bad = says(pair("p-1", reason="incompatible", detail="dtype"))
    found = verdict([("d-1", says(peers=0)), ("d-2", bad)])
    assert (found.status, found.reason) == ("False", "Incompatible")
    assert "d-1" in found.message


def test_channels_without_a_method_carry_nothing() -> None:
    broken = {"peer": "p-1", "state": "up", "rungs": []}
    assert verdict([("d-1", says(broken))])[:2] == ("False", "RungUnavailable")


def test_nobody_and_nothing_wanted() -> None:
    assert verdict([])[:2] == ("Unknown", "NoInstance")
    assert verdict([("d-1", says(kv_transfer="none"))])[:2] == ("False", "Disabled")
    assert verdict([("d-1", {})])[:2] == ("Unknown", "NoPeer"), "an instance of another release"


def test_a_pair_in_words() -> None:
    assert pair_text({}) == "?: none"
    two = {"rung": "rdma", "ports": [*RDMA["ports"], {"device": "mlx5_1:1", "gid": "fe80::1", "mtu": 1024}]}
    assert (
        pair_text(pair("p", two)) == "p: rdma on mlx5_0:1 (10.8.0.1, MTU 4096), mlx5_1:1 (fe80::1, MTU 1024)"
    )
