"""The part of Go's text/template that serving runtimes use: placeholders over the service's metadata.

`{{.Name}}`, `{{.Namespace}}`, `{{.Labels.key}}`, `{{.Annotations.key}}` and, for keys with dots or slashes,
``{{ index .Annotations `example.io/key` }}``. As in KServe (ReplacePlaceholders): dotted access to a missing key
prints "<no value>", index prints nothing. `{{-` and `-}}` trim white space. Anything else is an error that quotes it.
"""

from __future__ import annotations

import re
from typing import Final

from kserve_ext.api.kserve.resources import Meta

_ACTION: Final = re.compile(r"(\s*)\{\{(- )?(.*?)( -)?\}\}(\s*)", re.DOTALL)
_DOTTED: Final = re.compile(r"\.(Labels|Annotations)\.([A-Za-z_][A-Za-z0-9_]*)")
_INDEX: Final = re.compile(r"index\s+\.(Labels|Annotations)\s+(?:`([^`]*)`|\"([^\"]*)\")")
FORMS: Final = (
    "use {{.Name}}, {{.Namespace}}, {{.Labels.x}}, {{.Annotations.x}} or "
    "{{ index .Annotations `example.io/x` }}"
)


class TemplateError(ValueError):
    """A placeholder that is none of the known ones."""


def expand(text: str, meta: Meta) -> str:
    """The text with every placeholder replaced."""
    if "{{" not in text:
        return text

    def one(found: re.Match[str]) -> str:
        before, trim_left, action, trim_right, after = found.groups()
        value = _value(action.strip(), meta)
        return ("" if trim_left else before) + value + ("" if trim_right else after)

    result = _ACTION.sub(one, text)
    rest = _ACTION.sub("", text)
    if "{{" in rest:
        raise TemplateError(f"{text!r}: a placeholder is not closed; {FORMS}")
    return result


def _value(action: str, meta: Meta) -> str:
    if action == ".Name":
        return meta.name
    if action == ".Namespace":
        return meta.namespace
    maps = {"Labels": meta.labels, "Annotations": meta.annotations}
    if dotted := _DOTTED.fullmatch(action):
        return maps[dotted[1]].get(dotted[2], "<no value>")
    if index := _INDEX.fullmatch(action):
        return maps[index[1]].get(index[2] if index[2] is not None else index[3], "")
    raise TemplateError(f"placeholder {{{{{action}}}}} is not known; {FORMS}")
