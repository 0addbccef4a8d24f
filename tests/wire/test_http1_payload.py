"""The payload of a chunked body, however it is split."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.wire.http1_payload import Payload


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    extension=st.sampled_from([b"", b";a=b", b';a="c"']),
    trailer=st.sampled_from([b"", b"x: 1\r\n"]),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_every_split_counts_the_same(
    chunks: list[bytes], extension: bytes, trailer: bytes, cuts: list[int]
) -> None:
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    body += b"0\r\n" + trailer + b"\r\n"
    ends = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    payload = Payload()
    pieces = [body[start:end] for start, end in itertools.pairwise(ends)]
    assert sum(payload.count(piece) for piece in pieces) == sum(map(len, chunks))
