"""A user container's command as a slot runs it: references to variables put in, and the model where the pod has it.

`$(NAME)` is put in as the kubelet does: in variables from those before them, in words from all; `$$(NAME)` stays as
`$(NAME)`, and a name that nobody has stays as it is. In Kubernetes: third_party/forked/golang/expansion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kserve_ext.core.node.command_line import CommandLine, replace_path
from kserve_ext.core.standby.facts import Assignment

_REFERENCE = re.compile(r"\$(\$|\(([^)]*)\))")


def of(assignment: Assignment) -> CommandLine:
    env: dict[str, str] = {}
    for name, value in assignment.env:
        env[name] = expand(value, env)
    argv = [expand(word, env) for word in assignment.argv]
    for path, place in assignment.model:
        if path and place and path.rstrip("/") != place.rstrip("/"):
            argv = [replace_path(word, path, place) for word in argv]
            env = {name: replace_path(value, path, place) for name, value in env.items()}
    return CommandLine(tuple(argv), env)


def references(text: str) -> list[str]:
    return [found[2] for found in _REFERENCE.finditer(text) if found[2] is not None]


def expand(text: str, env: Mapping[str, str]) -> str:
    def put_in(found: re.Match[str]) -> str:
        name = found[2]
        if name is None:
            return "$"
        return env.get(name, found[0])

    return _REFERENCE.sub(put_in, text)
