"""Placeholders as in Go's text/template over the service's metadata."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.api.kserve.resources import Meta
from kserve_ext.api.kserve.templates import TemplateError, expand

META = Meta("tiny", "prod", {"team": "a"}, {"size": "s", "example.io/key": "k"})
CASES = [
    ("--name={{.Name}}", "--name=tiny"),
    ("{{ .Namespace }}/{{ .Name }}", "prod/tiny"),
    ("{{.Labels.team}}{{.Annotations.size}}", "as"),
    ("{{.Labels.none}}", "<no value>"),
    ("{{ index .Annotations `example.io/key` }}", "k"),
    ('{{ index .Annotations "example.io/key" }}', "k"),
    ("[{{ index .Labels `none` }}]", "[]"),
    ("a {{- .Name -}} b", "atinyb"),
    ("nothing }} here", "nothing }} here"),
]


@pytest.mark.parametrize(("text", "expanded"), CASES)
def test_known_forms(text: str, expanded: str) -> None:
    assert expand(text, META) == expanded


@pytest.mark.parametrize("text", ["{{.Nam}}", "{{ if .Name }}", "{{", "{{.Name", "{{.Spec.x}}", "{{}}"])
def test_others_are_errors(text: str) -> None:
    with pytest.raises(TemplateError, match=r"use \{\{\.Name\}\}"):
        expand(text, META)


@given(st.text(max_size=30), st.text(max_size=30))
def test_text_around_a_placeholder_stays(before: str, after: str) -> None:
    if "{" in before + after:
        return
    assert expand(before + "{{.Name}}" + after, META) == before + "tiny" + after
