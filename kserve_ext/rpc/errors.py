"""What a call can end with instead of its reply."""

from __future__ import annotations

from kserve_ext.wire.frames import ErrorCode


class RpcError(Exception):
    """A call without a reply. `sent` False: the request certainly never reached the peer's handler.

    `nobody`: the machine says that nobody listens at this address, so whoever did has ended.
    """

    def __init__(
        self, code: ErrorCode, detail: str, addr: str = "", *, sent: bool = True, nobody: bool = False
    ) -> None:
        super().__init__(code, detail, addr)
        self.code = code
        self.detail = detail
        self.addr = addr
        self.sent = sent
        self.nobody = nobody

    def __str__(self) -> str:
        return f"{self.addr or 'peer'}: {self.code.name.lower()}: {self.detail}"
