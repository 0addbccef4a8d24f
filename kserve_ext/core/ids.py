"""The identifiers that every part uses, as types of their own so that one can't be passed for another.

They are plain strings at run time: nothing is validated here, and nothing is made up here (ids are made by
whoever creates the thing, from a source of randomness that was handed in).
"""

from __future__ import annotations

from typing import NewType

RevisionKey = NewType("RevisionKey", str)  # "namespace/name"
InstanceID = NewType("InstanceID", str)
NodeID = NewType("NodeID", str)
#: "dispatch-0", "schedule-1", ...; nodes are members under their NodeID.
FunctionID = NewType("FunctionID", str)
RequestID = NewType("RequestID", str)
