"""The command as a node runs it."""

from __future__ import annotations

import pytest

from kserve_ext.core.facts import Command
from kserve_ext.core.node.command_line import on_node, replace_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/mnt/models", "/cache/m1"),
        ("--model=/mnt/models", "--model=/cache/m1"),
        ("/mnt/models/adapter", "/cache/m1/adapter"),
        ("a=/mnt/models,b=/mnt/models/x", "a=/cache/m1,b=/cache/m1/x"),
        ("/mnt/models2", "/mnt/models2"),
        ("/mnt/models-old/x", "/mnt/models-old/x"),
        ("/data/mnt/models", "/data/mnt/models"),
        ('{"path": "/mnt/models"}', '{"path": "/cache/m1"}'),
    ],
)
def test_mount_path_is_replaced_only_as_a_path_of_its_own(text: str, expected: str) -> None:
    assert replace_path(text, "/mnt/models", "/cache/m1") == expected


def test_a_folder_with_backslashes_is_taken_literally() -> None:
    assert replace_path("/mnt/models", "/mnt/models", r"/c\1") == r"/c\1"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("x", "--port=8080"), ("x", "--port=41")),
        (("x", "--port", "8080", "--y"), ("x", "--port", "41", "--y")),
        (("x", "--portal=1"), ("x", "--portal=1")),
        (("x", "-l", "0.0.0.0:$(PORT)"), ("x", "-l", "0.0.0.0:41")),
    ],
)
def test_port(argv: tuple[str, ...], expected: tuple[str, ...]) -> None:
    line = on_node(Command(argv), "/mnt/models", "", 41)
    assert line.argv == expected
    assert line.env["PORT"] == "41"


def test_env_values_are_replaced_too() -> None:
    command = Command(("x",), env=(("MODEL", "/mnt/models/a"), ("URL", "http://127.0.0.1:$(PORT)")))
    line = on_node(command, "/mnt/models", "/c", 7)
    assert line.env == {"MODEL": "/c/a", "URL": "http://127.0.0.1:7", "PORT": "7"}
