"""Facts that two sides must have in common: each that differs is named, and none is longer than its bound."""

from __future__ import annotations

import socket
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.transport import handshake
from runtimes.transport.channel import ChannelError
from runtimes.transport.handshake import Answer, Identity, Offer, prove
from runtimes.transport.layout import MOST_RANKS, MOST_TEXT, REMEDIES, Layout, differences
from runtimes.transport.listener import Listener, dial
from runtimes.transport.sockets import read_message, write_message

KEY = b"k" * 32
WAIT_S = 30.0
COUNTS = {"block_size", "kv_heads", "tensor_parallel", "pipeline_parallel"}
NEEDED = {"tensor_parallel", "pipeline_parallel"}


def fact(name: str) -> st.SearchStrategy[Any]:
    value: st.SearchStrategy[Any] = st.text(max_size=MOST_TEXT)
    if name == "heads_apart":
        return st.booleans()
    if name in COUNTS:
        value = st.integers(1, MOST_RANKS if name == "tensor_parallel" else 1 << 20)
    return value if name in NEEDED else st.none() | value


layouts = st.fixed_dictionaries({name: fact(name) for name in Layout.__struct_fields__}).map(
    lambda facts: Layout(**facts)
)


def test_each_fact_has_a_remedy() -> None:
    assert tuple(REMEDIES) == Layout.__struct_fields__


@given(layouts, layouts)
def test_exactly_the_facts_that_differ_are_named_in_order(prefill: Layout, decode: Layout) -> None:
    named = [text.partition(":")[0] for text in differences(prefill, decode)]
    facts, others = msgspec.structs.asdict(prefill), msgspec.structs.asdict(decode)
    differ = [name for name in REMEDIES if facts[name] != others[name]]
    degree = "tensor_parallel"  # may differ, sometimes
    assert [name for name in named if name != degree] == [name for name in differ if name != degree]
    assert named == [name for name in differ if name in named]
    assert [text.partition(":")[0] for text in differences(decode, prefill)] == named


@given(layouts)
def test_what_is_sent_is_what_arrives(layout: Layout) -> None:
    sent = msgspec.msgpack.encode(layout)
    assert msgspec.msgpack.decode(sent, type=Layout) == layout
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(sent, type=Layout)) == sent


@pytest.mark.parametrize(
    ("prefill", "decode", "says"),
    [
        ({}, {}, []),
        (
            {"dtype": "bfloat16"},
            {"dtype": "float32"},
            ["dtype: 'bfloat16' at prefill, 'float32' at decode; set --dtype equal"],
        ),
        (
            {"block_size": 64, "weights": "a1"},
            {"weights": "b2"},
            [
                "weights: 'a1' at prefill, 'b2' at decode; give both the same weights (--model)",
                "block_size: 64 at prefill, not set at decode; set --block-size equal",
            ],
        ),
        (
            {"revision": "a\x1b[2J\n"},
            {"revision": "\u202ea"},
            ["revision: 'a\\x1b[2J\\n' at prefill, '\\u202ea' at decode; set --revision equal"],
        ),
    ],
)
def test_a_difference_tells_both_values_and_the_remedy(
    prefill: dict[str, Any], decode: dict[str, Any], says: list[str]
) -> None:
    assert differences(Layout(**prefill), Layout(**decode)) == says


@pytest.mark.parametrize(
    ("facts", "degrees", "says"),
    [
        ({"kv_heads": 8, "heads_apart": True}, (2, 4), ""),
        ({"kv_heads": 8, "heads_apart": True}, (4, 1), ""),
        ({"kv_heads": 2, "heads_apart": True}, (4, 2), ""),
        ({"kv_heads": 1}, (4, 2), ""),  # each rank has the whole of it
        ({"kv_heads": 8}, (2, 4), "2 at prefill, 4 at decode; parts of these blocks can't be sent"),
        ({"kv_heads": 8, "heads_apart": True}, (3, 1), "8 KV heads can't be divided among 3 ranks"),
        ({}, (2, 1), "2 at prefill, 1 at decode; set --tensor-parallel-size equal"),
        ({}, (2, 2), ""),
    ],
)
def test_degrees_may_differ_where_heads_can_be_sent_apart(
    facts: dict[str, Any], degrees: tuple[int, int], says: str
) -> None:
    sides = [Layout(**facts, tensor_parallel=degree) for degree in degrees]
    told = differences(*sides)
    assert len(told) == bool(says)
    assert all(text.startswith("tensor_parallel: ") and says in text for text in told)


def refused(theirs: Layout, ours: Layout) -> ChannelError:
    """What a dialler learns from a listener."""
    listener = Listener(KEY, lambda: Identity("p", 7, ours), lambda channel: None)
    try:
        with pytest.raises(ChannelError) as caught:
            dial(listener.addr, KEY, Identity("d", 3, theirs))
    finally:
        listener.close()
    return caught.value


def test_the_dialler_learns_what_differs() -> None:
    error = refused(Layout(tensor_parallel=2, dtype="float32"), Layout(dtype="float16"))
    assert error.reason == "incompatible"
    assert error.detail == (
        "dtype: 'float16' at prefill, 'float32' at decode; set --dtype equal; "
        "tensor_parallel: 1 at prefill, 2 at decode; set --tensor-parallel-size equal"
    )


def test_the_longest_layouts_are_still_compared() -> None:
    text = [name for name in Layout.__struct_fields__ if name not in {*COUNTS, "heads_apart"}]
    facts: list[dict[str, Any]] = [dict.fromkeys(text, mark * MOST_TEXT) for mark in "\U0001f600\U0001f601"]
    error = refused(*(Layout(**each) for each in facts))
    assert error.reason == "incompatible"
    assert error.detail.count(" at prefill") == len(text)


@pytest.mark.parametrize("side", ["dialler", "listener"])
def test_a_layout_that_is_too_long_is_no_protocol_of_ours(side: str) -> None:
    long, right = Layout(dtype="x" * (MOST_TEXT + 1)), Layout()
    error = refused(long, right) if side == "dialler" else refused(right, long)
    assert error.reason == "protocol"
    assert "$.who.layout.dtype" in error.detail


@pytest.mark.parametrize(
    "change",
    [
        {"layout": None},
        {"layout": "a fingerprint"},
        {"layout": {"flavour": "sweet"}},
        {"layout": {"block_size": "128"}},
        {"layout": {"block_size": 0}},
        {"layout": {"tensor_parallel": None}},
        {"layout": {"pipeline_parallel": 1 << 21}},
        {"name": "d" * 513},
    ],
)
def test_an_identity_that_is_malformed_is_refused_and_its_field_named(change: dict[str, Any]) -> None:
    who = Identity("p", 7, Layout())
    offer = msgspec.to_builtins(
        Offer("a", "control", Identity("d", 3, Layout()), 7, b"n" * 16), builtin_types=(bytes,)
    )
    offer["who"] |= change
    listener = Listener(KEY, lambda: who, lambda channel: None)
    host, _, port = listener.addr.rpartition(":")
    with socket.create_connection((host, int(port)), WAIT_S) as connection:
        write_message(connection, msgspec.msgpack.encode(offer))
        answer = msgspec.msgpack.decode(read_message(connection), type=Answer)
    listener.close()
    assert answer.refused == "protocol"
    assert f"$.who.{next(iter(change))}" in answer.detail


def test_a_message_longer_than_a_handshake_needs_is_not_read() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall((1 << 20).to_bytes(4, "little"))
        with pytest.raises(ChannelError, match="protocol: a message of 1048576 bytes"):
            handshake.read_offer(near, KEY, Identity("p", 7, Layout()))


def test_a_refusal_that_was_changed_on_the_way_is_not_believed() -> None:
    offer = Offer("a", "control", Identity("d", 3, Layout()), 7, b"n" * 16)
    word = Answer(Identity("p", 7, Layout()), b"m" * 16, "incompatible", "dtype")
    proof = prove(KEY, "listener", msgspec.msgpack.encode(offer), word.nonce, handshake._said(word))
    for detail, reason in (("dtype", "incompatible"), ("weights", "unauthenticated")):
        near, far = socket.socketpair()
        with near, far:
            changed = msgspec.structs.replace(word, detail=detail, proof=proof)
            write_message(far, msgspec.msgpack.encode(changed))
            with pytest.raises(ChannelError) as caught:
                handshake.dial(near, KEY, offer)
        assert caught.value.reason == reason
