"""A revision's command as this node runs it: the port it chose, and the folder in which it has the model.

Pure text: the mount path of the model is replaced where it stands as a path of its own (`--model=/mnt/models`,
`/mnt/models/adapter`), never inside another name (`/mnt/models2`, `/data/mnt/models`). The port replaces the
value of the command's port option; `$(PORT)` is replaced everywhere.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kserve_ext.core.facts import Command


class CommandLine(NamedTuple):
    argv: tuple[str, ...]
    env: dict[str, str]


def on_node(command: Command, mount: str, folder: str, port: int) -> CommandLine:
    """`folder` "" leaves the mount path as it is (a command without a model)."""

    def local(text: str) -> str:
        text = text.replace("$(PORT)", str(port))
        return replace_path(text, mount, folder) if folder and mount else text

    argv = with_port([local(word) for word in command.argv], command.port_arg, port)
    env = {name: local(value) for name, value in command.env}
    env["PORT"] = str(port)
    return CommandLine(tuple(argv), env)


def with_port(argv: list[str], option: str, port: int) -> list[str]:
    """The value of `option` becomes `port`, in both spellings; an option that is not there is left out."""
    if not option:
        return argv
    out: list[str] = []
    value_follows = False
    for word in argv:
        if value_follows:
            out.append(str(port))
            value_follows = False
        elif word.startswith(f"{option}="):
            out.append(f"{option}={port}")
        else:
            out.append(word)
            value_follows = word == option
    return out


def replace_path(text: str, path: str, by: str) -> str:
    pattern = rf"(?<![\w./-]){re.escape(path.rstrip('/'))}(?=$|[^\w.-])"
    return re.sub(pattern, lambda _: by, text)
