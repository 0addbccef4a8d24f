"""YAML and JSON files, folders and standard input -> the objects in them, with where each came from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kserve_ext.api.kserve.resources import KindOf, kind_of, kind_remedy
from kserve_ext.cli.failure import Failure

SUFFIXES = (".yaml", ".yml", ".json")


class _TwiceError(yaml.YAMLError):
    """A key that one mapping has twice."""

    def __init__(self, key: str, lines: tuple[int, int]) -> None:
        super().__init__(key)
        self.key = key
        self.lines = lines


class _Loader(yaml.SafeLoader):
    """As kubectl: a key that is there twice is an error, not a victory of the last one. JSON is YAML here."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (key.tag, key.value) in lines:
                    raise _TwiceError(key.value, (lines[key.tag, key.value], line))
                lines[key.tag, key.value] = line
        return node


class Source(NamedTuple):
    """One object; `where` is for messages: who catches a Failure of these puts it in front."""

    where: str
    document: dict[str, Any]

    def kind(self) -> KindOf:
        word = str(self.document.get("kind") or "")
        found = kind_of(word)
        if found is None:
            raise Failure(
                f"unknown kind {word}" if word else "kind is missing",
                "the embedded cluster has the three kinds of KServe's runtimes, and PriorityClass",
                kind_remedy(word),
            )
        return found

    def names(self, namespace: str) -> tuple[str, str]:
        """Namespace ("" for cluster-wide kinds) and name."""
        metadata = self.document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not isinstance(metadata, dict) or not isinstance(name, str) or not name:
            raise Failure("metadata.name is missing", "every object has a name", "add it")
        if not self.kind().namespaced:
            return "", name
        return str(metadata.get("namespace") or namespace), name


def load(paths: tuple[str, ...]) -> list[Source]:
    """Every object of the files, of the files in the folders, and of "-" = standard input."""
    found: list[Source] = []
    for path in paths:
        if path == "-":
            found += _parse("(stdin)", sys.stdin.read())
            continue
        target = Path(path)
        if target.is_dir():
            files = sorted(f for f in target.iterdir() if f.suffix in SUFFIXES)
            if not files:
                raise Failure(
                    f"{path} has no {', '.join(SUFFIXES)} files", "", "name a file or another folder"
                )
        else:
            files = [target]
        for file in files:
            try:
                text = file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise Failure(f"{file} can't be read", str(error), "correct the path") from None
            found += _parse(str(file), text)
    if not found:
        raise Failure("there is no object in what was given", "", "write apiVersion, kind, metadata and spec")
    return found


def _parse(where: str, text: str) -> list[Source]:
    try:
        documents = [d for d in yaml.load_all(text, _Loader) if d is not None]
    except _TwiceError as twice:
        first, second = twice.lines
        why = f"line {second}: {twice.key} is set already, in line {first}"
        raise Failure(f"{where} has the key {twice.key} twice", why, "remove one of them") from None
    except yaml.YAMLError as error:
        raise Failure(f"{where} is not YAML", str(error).replace("\n", " "), "correct the line") from None
    found = []
    for number, document in enumerate(documents, 1):
        place = where if len(documents) == 1 else f"{where}, document {number}"
        if not isinstance(document, dict):
            raise Failure(f"{place} is not an object", "", "write apiVersion, kind, metadata and spec")
        items = document.get("items") if document.get("kind") == "List" else None
        if isinstance(items, list):
            found += [
                Source(f"{place}, item {n}", item)
                for n, item in enumerate(items, 1)
                if isinstance(item, dict)
            ]
        else:
            found.append(Source(place, document))
    return found
