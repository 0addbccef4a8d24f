"""Calls between functions, nodes and instances: authenticated, with deadlines, epochs and trace context."""

from kserve_ext.rpc.caller import Caller, Trace
from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.rpc import Rpc

__all__ = ["Caller", "Rpc", "RpcError", "Trace"]
