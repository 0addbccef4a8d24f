"""The hello as two machines that exchange bodies: who gets in, and who doesn't whatever it replays or reflects."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.rpc.hello import Greeting, HelloFailed, HelloRefused, Refusal, encode

KEY, OTHER = b"k" * 32, b"o" * 32
names = st.text(max_size=20)


def sides(
    caller_key: bytes = KEY, name: str = "node-0", nonces: tuple[bytes, bytes] = (b"1" * 16, b"2" * 16)
) -> tuple[Greeting, Greeting]:
    caller = Greeting(name, caller_key, nonces[0], caller=True)
    return caller, Greeting("schedule-0", KEY, nonces[1], caller=False)


@given(names)
def test_both_learn_the_others_name(name: str) -> None:
    caller, listener = sides(name=name)
    response = listener.received(caller.first())
    assert listener.peer == ""
    assert listener.received(caller.received(response)) == b""
    assert caller.done
    assert listener.done
    assert (caller.peer, listener.peer) == ("schedule-0", name)


def test_a_caller_with_another_key_finds_out_first_and_tells() -> None:
    caller, listener = sides(OTHER)
    response = listener.received(caller.first())
    with pytest.raises(HelloFailed, match="schedule-0 holds another cluster key") as caught:
        caller.received(response)
    with pytest.raises(HelloRefused, match="refused the hello: schedule-0 holds another cluster key"):
        listener.received(encode(Refusal(str(caught.value))))
    assert not caller.done
    assert not listener.done


def test_a_caller_that_goes_on_with_another_key_is_not_let_in() -> None:
    honest, listener = sides()
    listener.received(honest.first())
    stranger, their_listener = sides(OTHER)
    their_listener._key = OTHER
    proof = stranger.received(their_listener.received(stranger.first()))
    with pytest.raises(HelloFailed, match="node-0 holds another cluster key"):
        listener.received(proof)
    assert not listener.done


def test_a_recorded_proof_is_of_no_use_against_another_nonce() -> None:
    caller, listener = sides()
    recorded = caller.received(listener.received(caller.first()))
    _, again = sides(nonces=(b"1" * 16, b"3" * 16))
    again.received(caller.first())
    with pytest.raises(HelloFailed):
        again.received(recorded)


def test_the_listeners_own_proof_can_not_be_reflected() -> None:
    caller, listener = sides()
    _, _, proof = msgspec.msgpack.decode(listener.received(caller.first()))
    with pytest.raises(HelloFailed):
        listener.received(msgspec.msgpack.encode([proof]))
    assert not listener.done


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_bytes_of_a_stranger_never_let_it_in(bodies: list[bytes]) -> None:
    for side in sides():
        for body in bodies:
            try:
                side.received(body)
            except HelloFailed:
                break
        assert not side.done
