"""The seam between the HTTP data plane (http1.py, server.py) and the dispatch decisions (dispatch.py).

An exchange is one request of one client connection and what becomes of it. The data plane owns its bytes, its
timers and its connections; Dispatch owns which revision and which instance it goes to, and the slot it uses.
Everything is called on the one event loop, returns at once, and may call back into the other side before
it returns (`submit` usually calls `go`).

Life of an exchange, and who calls what (each line once, in this order; no call ever follows the last one):

    resolve -> Refusal                                  answered by the data plane, never submitted
    resolve -> revision, submit (again after read has returned None), then one of
        refuse                                          Dispatch answers; nothing is called afterwards
        cancelled                                       client went, or deadline passed, while it was held
        go, sent?, first_byte?, then one of
            finished                                    slot free again, also after a failure in mid-response
            full                                        the instance had no place for it, and began nothing
                returns True                            re-queued: held again, as after submit
                returns False                           as if it had not been called: first_byte, finished
            failed                                      no byte of a response came, or its stream broke off and can
                                                        be continued; slot free again.
                returns True                            re-queued: held again, as after submit
                returns False                           answered with 502 by the data plane
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

from kserve_ext.core.ids import InstanceID, RevisionKey

OK: Final = 0  # the whole response has been passed on (whatever its status)
CLIENT_GONE: Final = 1  # the client closed, or was cut off as too slow; upstream was closed with it
UPSTREAM_FAILED: Final = 2  # the instance broke off, or answered what is not HTTP
TIMEOUT: Final = 3  # the exchange's deadline passed; answered 504 if no head had been sent

OUTCOMES: Final = ("ok", "client_gone", "upstream_failed", "timeout")


class Refusal(NamedTuple):
    """Why a request gets no instance: `reason` says so to a person, with the remedy."""

    status: int  # one of refusals.REFUSALS
    reason: str
    retry_after_s: float = 0.0  # or refusals.NEVER


class Exchange(Protocol):
    """One request whose head was fully read. Dispatch may keep it in queues until its last call."""

    revision: RevisionKey
    instance: InstanceID  # set by go; "" before
    started: float  # loop time when the head was complete
    #: What it costs to hold it: its head and the part of its body that is read while it is held. Does not change.
    held_bytes: int
    outcome: int  # valid in finished and in cancelled
    attempts: int  # how often go was called
    #: Set by Dispatch in submit when the revision's own limit is another than the server's. Counted from
    #: `started`; it covers holding, and ends when the response's head has been sent.
    timeout_s: float
    cold: bool  # set by Dispatch before go: answered as x-cold-start
    #: Set by Dispatch in submit: its stream may go on at another instance. Over HTTP/2 it never does.
    continues: bool
    continued: int  # so often it did
    note: Any  # Dispatch's own, e.g. the record of marks; the data plane never reads it

    @property
    def request_id(self) -> bytes: ...

    @property
    def head(self) -> bytes:
        """As the client sent it: with the final empty line, or a header block.

        Over HTTP/2 it may be empty once the request can't be sent again.
        """

    def header(self, name: bytes) -> bytes | None:
        """First value of a request header, `name` in lower case; slow, for affinity and tenant headers."""

    def read(self, wanted: int) -> bytes | None:
        """The first bytes of its body: `wanted` of them, or as many as it has, or as can be read while it is held.

        Only from within submit. None: they aren't here; submit is called once more when they are.
        """

    def go(self, addr: str, instance: InstanceID) -> None:
        """Sends it to the instance at host:port now."""

    def refuse(self, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        """Answers it with the JSON error of that status (refusals.py); ends the exchange."""


class Dispatch(Protocol):
    """Decides; implemented by dispatch.py, and by static.py for fixed routes."""

    def resolve(self, host: bytes, namespace: bytes | None, revision: bytes | None) -> RevisionKey | Refusal:
        """`host` is the Host header as sent (perhaps with a port); the others are Knative's two headers."""

    def submit(self, exchange: Exchange) -> None:
        """Later exactly one of exchange.go, exchange.refuse; or the data plane calls cancelled."""

    def sent(self, exchange: Exchange) -> None:
        """Its head was written to the instance."""

    def first_byte(self, exchange: Exchange) -> None:
        """The head of its response was read; of a continued one, that of the next instance."""

    def finished(self, exchange: Exchange, outcome: int) -> None:
        """Its slot is free. May call go on other exchanges."""

    def failed(self, exchange: Exchange, reason: str, retriable: bool) -> bool:
        """The instance refused or reset before any byte of a response, or in mid-stream (`first_byte` was called).

        `retriable`: the data plane still has every byte of the request. True = held again (go may already
        have been called); False, always when not retriable = the data plane answers 502.
        """

    def full(self, exchange: Exchange) -> bool:
        """The instance says that it has as many requests as it takes at once, and has begun nothing of this one.

        Somebody whose slot has been given away still has one there. True = held again; False = the instance's
        answer is passed on, and finished follows.
        """

    def cancelled(self, exchange: Exchange) -> None:
        """It ended while held (exchange.outcome says how): forget it."""
