"""Go's text/template as far as lines of a log need it: fields, pipelines, functions, if and else, comments, trimming.

A template is read once, against the fields and functions that there are, and whatever is unknown or not part of this
(range, with, variables, templates within templates) is an error that quotes it: nothing is left to find out while it
is in use. Values print as Go's fmt prints them. In Go: text/template/parse, text/template/funcs.go.
"""

from __future__ import annotations

import html
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

Value = Any
#: What a node makes of the template's input.
Node = Callable[[Any], Value]

_ACTION: Final = re.compile(r"\{\{(?:(-)(?=\s))?(.*?)(?:(?<=\s)(-))?\}\}", re.DOTALL)
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>[+-]?\d+(?:\.\d+)?)|(?P<field>(?:\.[A-Za-z_]\w*)+)"""
    r"""|(?P<word>[A-Za-z_]\w*)|(?P<mark>[|()]))""",
    re.DOTALL,
)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}
_JS: Final = {
    "\\": "\\\\",
    "'": "\\'",
    '"': '\\"',
    "<": "\\u003C",
    ">": "\\u003E",
    "&": "\\u0026",
    "=": "\\u003D",
}
_VERB: Final = re.compile(r"%([-+ 0]*\d*(?:\.\d+)?)([a-zA-Z%])")


class TemplateError(ValueError):
    """A template that can't be read; says where and what there is instead."""


class Method(NamedTuple):
    """A field that takes arguments."""

    call: Callable[..., Value]
    arguments: int


def js(text: str) -> str:
    out = []
    for char in text:
        if char in _JS:
            out.append(_JS[char])
        elif char < " " or (char > "~" and not char.isprintable()):
            out.append(f"\\u{ord(char):04X}")
        else:
            out.append(char)
    return "".join(out)


def text_of(value: Value) -> str:
    """As Go's fmt prints it with %v."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e21 else repr(value)
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{name}:{text_of(value[name])}' for name in sorted(value))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(text_of, value))}]"
    return "<nil>" if value is None else str(value)


def printed(*values: Value) -> str:
    """As Go's fmt.Sprint: a space between two operands of which neither is text."""
    out: list[str] = []
    for at, value in enumerate(values):
        if at and not isinstance(value, str) and not isinstance(values[at - 1], str):
            out.append(" ")
        out.append(text_of(value))
    return "".join(out)


def formatted(form: str, *values: Value) -> str:
    """The verbs of Go's fmt.Sprintf that people write into log lines."""
    left = iter(values)

    def one(found: re.Match[str]) -> str:
        flags, verb = found.groups()
        if verb == "%":
            return "%"
        value = next(left, None)
        if verb in "dx" and isinstance(value, int):
            return f"%{flags}{verb}" % value
        if verb in "feg" and isinstance(value, int | float):
            return f"%{flags}{verb}" % value
        if verb == "q":
            return '"' + text_of(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        return f"%{flags}s" % text_of(value)

    return _VERB.sub(one, form)


def index(found: Value, *keys: Value) -> Value:
    for key in keys:
        if isinstance(found, Mapping):
            found = found.get(key, [])  # all there are have lists
        else:
            found = found[key] if isinstance(key, int) and 0 <= key < len(found) else ""
    return found


def _either(*values: Value) -> Value:
    return next((value for value in values if value), values[-1])


def _all(*values: Value) -> Value:
    return next((value for value in values if not value), values[-1])


FUNCTIONS: Final[Mapping[str, Callable[..., Value]]] = {
    "and": _all,
    "eq": lambda value, *others: value in others,
    "ge": lambda one, two: one >= two,
    "gt": lambda one, two: one > two,
    "html": lambda *values: (
        html.escape(printed(*values)).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")
    ),
    "index": index,
    "js": lambda *values: js(printed(*values)),
    "le": lambda one, two: one <= two,
    "len": len,
    "lt": lambda one, two: one < two,
    "ne": lambda one, two: one != two,
    "not": lambda value: not value,
    "or": _either,
    "print": printed,
    "printf": formatted,
    "println": lambda *values: " ".join(map(text_of, values)) + "\n",
    "urlquery": lambda *values: urllib.parse.quote_plus(printed(*values), safe=""),
}


def compiled(template: str, fields: Mapping[str, Node | Method]) -> Callable[[Any], str]:
    """What makes a line of an input. `fields`: by their paths, ".Request.Method". Raises TemplateError."""
    try:
        node, end = _Reader(template, fields).block()
    except RecursionError:
        raise TemplateError("it is nested too deep") from None
    if end:
        raise TemplateError(f"{{{{{end}}}}} without an if before it")
    return node


class _Reader:
    def __init__(self, template: str, fields: Mapping[str, Node | Method]) -> None:
        self._pieces = _pieces(template)
        self._fields = fields

    def block(self) -> tuple[Callable[[Any], str], str]:
        """Up to the end, or to an else or end, which is told."""
        nodes: list[Node] = []
        for piece in self._pieces:
            if isinstance(piece, str):
                nodes.append(_constant(piece))
                continue
            action = piece.action
            word, _, rest = action.partition(" ")
            if word in ("else", "end"):
                return _joined(nodes), action
            nodes.append(self._if(rest) if word == "if" else self._pipeline(action))
        return _joined(nodes), ""

    def _if(self, condition: str) -> Node:
        asked = self._pipeline(condition)
        then, end = self.block()
        otherwise = _constant("")
        if end == "else":
            otherwise, end = self.block()
        elif end.startswith("else if "):
            otherwise, end = self._if(end.removeprefix("else if ")), "end"
        if end != "end":
            raise TemplateError(f"{{{{if {condition}}}}} is not closed: it ends with {{{{end}}}}")
        return lambda given: then(given) if asked(given) else otherwise(given)

    def _pipeline(self, action: str) -> Node:
        tokens = _Tokens(action)
        node = self._pipe(tokens)
        if tokens.kind:
            raise TemplateError(f"{{{{{action}}}}}: {tokens.value!r} is one too many")
        return node

    def _pipe(self, tokens: _Tokens) -> Node:
        node = self._command(tokens, None)
        while tokens.value == "|" and tokens.kind == "mark":
            tokens.next()
            node = self._command(tokens, node)
        return node

    def _command(self, tokens: _Tokens, last: Node | None) -> Node:
        """`last`: what a pipe brings as the last argument."""
        kind, value, action = tokens.kind, tokens.value, tokens.action
        call: Callable[..., Value] | None = None
        if kind == "word" and value in FUNCTIONS:
            tokens.next()
            call, least = FUNCTIONS[value], 1
        elif kind == "field" and isinstance(found := self._field(value), Method):
            tokens.next()
            call, least = found.call, found.arguments
        arguments: list[Node] = []
        while tokens.kind and tokens.value not in ("|", ")"):
            arguments.append(self._operand(tokens))
        if last is not None:
            arguments.append(last)
        if call is None:
            if len(arguments) != 1:
                what = "nothing in it" if not arguments else "takes no arguments"
                raise TemplateError(f"{{{{{action}}}}}: {value or 'an action'} {what}")
            return arguments[0]
        if kind == "field":
            owner = value
            if len(arguments) != least:
                raise TemplateError(f"{{{{{action}}}}}: {owner} takes {least} argument(s)")
            return lambda given: call(given, *(argument(given) for argument in arguments))
        if len(arguments) < least:
            raise TemplateError(f"{{{{{action}}}}}: {value} needs an argument")
        return lambda given: call(*(argument(given) for argument in arguments))

    def _operand(self, tokens: _Tokens) -> Node:
        kind, value = tokens.kind, tokens.value
        tokens.next()
        if kind == "field":
            found = self._field(value)
            if isinstance(found, Method):
                raise TemplateError(f"{{{{{tokens.action}}}}}: put {value} and its argument in parentheses")
            return found
        if value == "(":
            node = self._pipe(tokens)
            if tokens.value != ")":
                raise TemplateError(f"{{{{{tokens.action}}}}}: a parenthesis is not closed")
            tokens.next()
            return node
        return _constant(_literal(kind, value, tokens.action))

    def _field(self, path: str) -> Node | Method:
        found = self._fields.get(path)
        if found is None:
            raise TemplateError(f"{path} is not known; there are {', '.join(sorted(self._fields))}")
        return found


class _Action(NamedTuple):
    action: str


class _Tokens:
    """The tokens of one action; `kind` "" at the end."""

    def __init__(self, action: str) -> None:
        self.action = action
        self._at = 0
        self.kind = self.value = ""
        self.next()

    def next(self) -> None:
        if not self.action[self._at :].strip():
            self.kind = self.value = ""
            return
        found = _TOKEN.match(self.action, self._at)
        if found is None:
            raise TemplateError(f"{{{{{self.action}}}}}: {self.action[self._at :].strip()!r} can't be read")
        self.kind = found.lastgroup or ""
        self.value = found[self.kind]
        self._at = found.end()


def _constant(value: Value) -> Node:
    return lambda _: value


def _literal(kind: str, value: str, action: str) -> Value:
    if kind == "number":
        return float(value) if "." in value else int(value)
    if kind == "text":
        if value[0] == "`":
            return value[1:-1]
        return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), value[1:-1])
    if value in ("true", "false"):
        return value == "true"
    known = ", ".join(FUNCTIONS)
    raise TemplateError(f"{{{{{action}}}}}: {value} is not known here; there are if, else, end, {known}")


def _pieces(template: str) -> Iterator[str | _Action]:
    """Text and actions in turn, trimmed, without comments."""
    at = 0
    trim = False
    for found in _ACTION.finditer(template):
        text = template[at : found.start()]
        at = found.end()
        text = text.lstrip() if trim else text
        yield _whole(text.rstrip() if found[1] else text)
        trim = found[3] is not None
        action = found[2].strip()
        if not (action.startswith("/*") and action.endswith("*/")):
            if not action:
                raise TemplateError("{{}}: nothing in it")
            yield _Action(" ".join(action.split()) if action.startswith("else") else action)
    text = template[at:]
    yield _whole(text.lstrip() if trim else text)


def _whole(text: str) -> str:
    if "{{" in text:
        raise TemplateError(f"{text[text.index('{{') :]!r}: an action is not closed, }}}} is missing")
    return text


def _joined(nodes: list[Node]) -> Callable[[Any], str]:
    return lambda given: "".join([text_of(node(given)) for node in nodes])
