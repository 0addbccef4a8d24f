"""The only file that imports pyverbs: devices, memory and queue pairs as the rest of this package sees them.

Thin on purpose: no waiting, no accounting, no policy. Work requests are made once and written over, because pyverbs'
own never give their memory back and cost more to make than to post. A completion channel's file descriptor, which
pyverbs keeps to itself, is found by its number when it is made; so waiting happens outside, with the interpreter's
lock released. Calls are not safe against each other's close: the callers hold locks.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Final, NamedTuple

import pyverbs.enums as e  # type: ignore[import-not-found, unused-ignore]
from pyverbs import base  # type: ignore[import-not-found, unused-ignore]
from pyverbs.addr import GID, AHAttr, GlobalRoute  # type: ignore[import-not-found, unused-ignore]
from pyverbs.cq import CQ, CompChannel  # type: ignore[import-not-found, unused-ignore]
from pyverbs.device import Context, get_device_list  # type: ignore[import-not-found, unused-ignore]
from pyverbs.mr import MR, DmaBufMR  # type: ignore[import-not-found, unused-ignore]
from pyverbs.pd import PD  # type: ignore[import-not-found, unused-ignore]
from pyverbs.pyverbs_error import PyverbsError  # type: ignore[import-not-found, unused-ignore]
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr  # type: ignore[import-not-found, unused-ignore]
from pyverbs.wr import SGE, RecvWR, SendWR  # type: ignore[import-not-found, unused-ignore]

from runtimes.transport.channel import ChannelError, Reason
from runtimes.transport.verbs.choice import Device, Gid, GidKind, Place, Port
from runtimes.transport.verbs.turn import Turn

#: Requests that are handed to the device in one call.
BATCH: Final = 32
_OPCODES: Final = {
    "write": e.IBV_WR_RDMA_WRITE,
    "write+": e.IBV_WR_RDMA_WRITE_WITH_IMM,
    "read": e.IBV_WR_RDMA_READ,
    "send": e.IBV_WR_SEND_WITH_IMM,
}
_GID_KINDS: Final[dict[int, GidKind]] = {
    e.IBV_GID_TYPE_IB: "infiniband",
    e.IBV_GID_TYPE_ROCE_V1: "roce1",
    e.IBV_GID_TYPE_ROCE_V2: "roce2",
}
_LOCAL: Final = e.IBV_ACCESS_LOCAL_WRITE
#: What a peer may do: no rung needs more than to write, and what lies in a cache is of everybody's requests.
_REMOTE: Final = _LOCAL | e.IBV_ACCESS_REMOTE_WRITE
_READABLE: Final = _REMOTE | e.IBV_ACCESS_REMOTE_READ
_EVENTS: Final = "anon_inode:[infinibandevent]"
#: Retransmission: six times (seven means for ever to soft-RoCE) after 0.27 s each, so a link may be away for a
#: second; a message that nobody has posted a buffer for is tried again after 0.16 ms, while the peer lives.
_TIMEOUT, _RETRIES, _RNR_TIMER, _RNR_FOREVER = 16, 6, 8, 7
_LOCKED: Final = (
    "memory that may be locked (ulimit -l) or the device's regions are used up, or it isn't mapped"
)
_opening = threading.Lock()
#: pyverbs asks for a logger by its name whenever it makes an object, be it a completion: that takes a lock each time.
base.logging = SimpleNamespace(getLogger=functools.cache(logging.getLogger))


class Key(NamedTuple):
    local: int
    remote: int


class Request(NamedTuple):
    """One work request; `op` is a key of _OPCODES."""

    op: str
    local: int
    lkey: int
    size: int
    remote: int = 0
    rkey: int = 0
    immediate: int = 0


class Completion(NamedTuple):
    id: int
    status: int
    size: int
    immediate: int | None  # of what was received
    message: bool  # received by SEND: the bytes lie in the buffer that was posted
    vendor: int


def devices() -> list[Device]:
    """What this machine has. Raises OSError when there is nothing to ask."""
    try:
        names = [found.name.decode() for found in get_device_list()]
    except PyverbsError as error:
        raise OSError(f"no RDMA device ({error})") from error
    return [_describe(name) for name in names]


def _describe(name: str) -> Device:
    try:
        context = Context(name=name)
    except PyverbsError as error:  # its file is here, and not for this process
        return Device(name, (), shut=f"{_why(error)}; see /dev/infiniband and its rights")
    try:
        limits = context.query_device()
        ports = []
        for number in range(1, limits.phys_port_cnt + 1):
            state = context.query_port(number)
            gids = tuple(
                Gid(
                    entry.gid_index,
                    context.query_gid(number, entry.gid_index).gid,
                    _GID_KINDS[entry.gid_type],
                )
                for entry in context.query_gid_table(state.gid_tbl_len * limits.phys_port_cnt)
                if entry.port_num == number
            )
            ethernet = state.link_layer == e.IBV_LINK_LAYER_ETHERNET
            ports.append(
                Port(
                    number,
                    "ethernet" if ethernet else "infiniband",
                    state.state == e.IBV_PORT_ACTIVE,
                    128 << state.active_mtu,
                    state.lid,
                    gids,
                    state.max_msg_sz,
                )
            )
        return Device(name, tuple(ports), limits.max_qp_wr, limits.max_qp_rd_atom)
    finally:
        context.close()


class Card:
    """A device in use: its context and protection domain."""

    def __init__(self, place: Place) -> None:
        self.place = place
        with _opening, _told("device", f"opening {place.device}", "see /dev/infiniband and its rights"):
            self._context = Context(name=place.device)
            self._domain = PD(self._context)
        self._requests = _Requests()

    def register(self, address: int, length: int, *, remote: bool, readable: bool = False) -> Memory:
        access = (_READABLE if readable else _REMOTE) if remote else _LOCAL
        with _told("memory", f"registering {length} bytes with {self.place.device}", _LOCKED):
            return Memory(MR(self._domain, length, access, address=address))

    def register_dmabuf(self, descriptor: int, offset: int, length: int, *, remote: bool) -> Memory:
        """Memory of another device, by the dma-buf that its driver exports for it. Addresses begin at `offset`."""
        what = f"registering a dma-buf of {length} bytes with {self.place.device}"
        with _told("memory", what, "its driver must know dma-buf: staging goes without"):
            access = _REMOTE if remote else _LOCAL
            return Memory(DmaBufMR(self._domain, length, access, descriptor, offset))

    def queue(self, send_depth: int, receive_depth: int) -> Queue:
        with _told("device", f"a queue pair on {self.place.device}", "see max_qp of the device"):
            return Queue(self.place, self._context, self._domain, self._requests, send_depth, receive_depth)

    def close(self) -> None:
        self._requests.close()
        with _opening:
            self._domain.close()
            self._context.close()


class Memory:
    """A registration; the memory stays its owner's."""

    def __init__(self, region: MR) -> None:
        self._region = region
        self.key = Key(region.lkey, region.rkey)

    def close(self) -> None:
        self._region.close()


class _Events:
    """A completion queue and its descriptor, readable when there is an event."""

    def __init__(self, context: Context, depth: int) -> None:
        with _opening:
            self.descriptor, self._channel = _channel(context)
            self.queue = CQ(context, depth, None, self._channel, 0)

    def arm(self) -> None:
        self.queue.req_notify()

    def clear(self) -> None:
        """To be called when the descriptor is readable."""
        self._channel.get_cq_event(self.queue)
        self.queue.ack_events(1)

    def close(self) -> None:
        with _opening:
            self.queue.close()
            self._channel.close()


class _Requests:
    """A chain of BATCH work requests, written over for each call. The end is fixed; how long it is says the start."""

    def __init__(self) -> None:
        self.lock = Turn()
        self._elements = [SGE(0, 0, 0) for _ in range(BATCH)]
        self._slots = [_slot(element) for element in self._elements]
        for before, after in zip(self._slots, self._slots[1:], strict=False):
            before.next_wr = after

    def chain(self, requests: Sequence[Request], last_id: int) -> SendWR:
        """With the lock held until it is posted."""
        first = BATCH - len(requests)
        for element, slot, request in zip(self._elements[first:], self._slots[first:], requests, strict=True):
            op, local, lkey, size, remote, rkey, immediate = request
            element.addr, element.length, element.lkey = local, size, lkey
            slot.opcode, slot.send_flags, slot.imm_data = _OPCODES[op], 0, immediate
            if op != "send":
                slot.set_wr_rdma(rkey, remote)
        last = self._slots[-1]
        last.wr_id, last.send_flags = last_id, e.IBV_SEND_SIGNALED
        return self._slots[first]

    def close(self) -> None:
        for element in self._elements:
            element.close()
        self._elements, self._slots = [], []


def _slot(element: SGE) -> SendWR:
    made = SendWR(num_sge=1, sg=[element], send_flags=0)
    made.close()  # its own copy of the element; from now on it shares the one that we keep
    made.sg_list = element
    return made


class Queue:
    """A reliable connected queue pair, with a completion queue for each direction."""

    def __init__(
        self,
        place: Place,
        context: Context,
        domain: PD,
        requests: _Requests,
        send_depth: int,
        receive_depth: int,
    ) -> None:
        self._place = place
        self._requests = requests
        self.sent = _Events(context, send_depth)
        self.received = _Events(context, receive_depth)
        attributes = QPAttr(port_num=place.port)
        attributes.qp_access_flags = _READABLE  # each region says for itself
        capacity = QPCap(send_depth, receive_depth, 1, 1)
        kind = QPInitAttr(
            qp_type=e.IBV_QPT_RC, scq=self.sent.queue, rcq=self.received.queue, cap=capacity, sq_sig_all=0
        )
        try:
            self._pair = QP(domain, kind, attributes)
        except PyverbsError:
            self.sent.close()
            self.received.close()
            raise
        self.number: int = self._pair.qp_num
        self.first_packet = secrets.randbits(24)
        self._buffers: list[RecvWR] = []
        #: For a message that is all in one buffer.
        self._element = SGE(0, 0, 0)
        self._message = _slot(self._element)
        self._message.opcode, self._message.send_flags = _OPCODES["send"], e.IBV_SEND_SIGNALED

    def connect(self, number: int, first_packet: int, gid: str, lid: int, mtu: int, reads: int) -> None:
        attributes = QPAttr()
        if self._place.link == "ethernet":
            route = GlobalRoute(dgid=GID(gid), sgid_index=self._place.gid_index, hop_limit=64)
            attributes.ah_attr = AHAttr(port_num=self._place.port, is_global=1, gr=route, dlid=0)
        else:
            attributes.ah_attr = AHAttr(port_num=self._place.port, is_global=0, dlid=lid)
        attributes.port_num = self._place.port
        attributes.qp_access_flags = _READABLE  # each region says for itself
        attributes.dest_qp_num = number
        attributes.path_mtu = (mtu >> 7).bit_length() - 1
        attributes.rq_psn, attributes.sq_psn = first_packet, self.first_packet
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = reads
        attributes.min_rnr_timer = _RNR_TIMER
        attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = _TIMEOUT, _RETRIES, _RNR_FOREVER
        with _told(
            "unreachable", f"connecting a queue pair on {self._place.device} to {gid}", "is there a route?"
        ):
            self._pair.to_rts(attributes)

    def post(self, requests: Sequence[Request], last_id: int) -> None:
        """At most BATCH of them; only the last one is completed, under `last_id`."""
        try:
            with self._requests.lock:
                self._pair.post_send(self._requests.chain(requests, last_id))
        except PyverbsError as error:
            raise self._refused(error) from error

    def post_message(self, local: int, lkey: int, size: int, last_id: int) -> None:
        """One that is all in one buffer. Not from two threads at once."""
        element, message = self._element, self._message
        element.addr, element.lkey, element.length = local, lkey, size
        message.wr_id = last_id
        try:
            self._pair.post_send(message)
        except PyverbsError as error:
            raise self._refused(error) from error

    def _refused(self, error: PyverbsError) -> ChannelError:
        return ChannelError("device", f"{self._place.device} takes no requests any more: {_why(error)}")

    def add_buffers(self, address: int, lkey: int, size: int, count: int) -> None:
        """Behind each other; each is posted by `post_buffer`, by its number, counted from 0."""
        element = SGE(address, size, lkey)
        for number in range(count):
            element.addr = address + number * size
            self._buffers.append(RecvWR(wr_id=number, num_sge=1, sg=[element]))
        element.close()

    def post_buffer(self, number: int) -> None:
        self._pair.post_recv(self._buffers[number])

    def poll(self, events: _Events, most: int) -> list[Completion]:
        _, found = events.queue.poll(most)
        return [
            Completion(
                wc.wr_id,
                wc.status,
                wc.byte_len,
                wc.imm_data if wc.wc_flags & e.IBV_WC_WITH_IMM else None,
                wc.opcode == e.IBV_WC_RECV,
                wc.vendor_err,
            )
            for wc in found
        ]

    def fail(self) -> None:
        """Everything that is posted comes back, flushed: whoever waits wakes up."""
        with contextlib.suppress(PyverbsError):  # a device that is broken gives it all back by itself
            self._pair.modify(QPAttr(qp_state=e.IBV_QPS_ERR), e.IBV_QP_STATE)

    def close(self) -> None:
        self._pair.close()
        self.sent.close()
        self.received.close()
        for buffer in self._buffers:
            buffer.close()
        self._buffers = []
        self._element.close()


@contextlib.contextmanager
def _told(reason: Reason, what: str, remedy: str) -> Iterator[None]:
    """Whatever pyverbs says, as an error of the channel."""
    try:
        yield
    except PyverbsError as error:
        raise ChannelError(reason, f"{what}: {_why(error)} ({remedy})") from error


def _why(error: PyverbsError) -> str:
    code = getattr(error, "error_code", None)
    return os.strerror(abs(code)) if code else str(error).partition(". Errno")[0]


def _channel(context: Context) -> tuple[int, CompChannel]:
    """A completion channel and its descriptor: the lowest that was free. With `_opening` held."""
    while True:
        free = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.close(free)
        made = CompChannel(context)
        if _is_events(free):
            return free, made
        made.close()  # another thread has opened a file in between


def _is_events(descriptor: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == _EVENTS
    except OSError:
        return False
