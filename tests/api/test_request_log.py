"""Lines of the request log: Knative's own cases, and the part of Go's templates that there is."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.api.go_template import TemplateError
from kserve_ext.api.knative.request_log import DEFAULT, Entry, Revision, line

ENTRY = Entry(
    method="POST",
    uri="/testpage?x=1&y=a%20b",
    host="example.com",
    major=1,
    minor=1,
    length=4,
    remote="1.2.3.4:5678",
    headers={
        "Content-Length": ["4"],
        "User-Agent": ['cu"<rl>'],
        "X-A": ["one", "two"],
        "Traceparent": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    },
    code=200,
    size=5,
    latency_s=0.25,
    revision=Revision("testNs", "testRevision", "testSvc", "testConfig"),
)
LINES = [
    ("{{.Request.URL}}\n", "/testpage?x=1&y=a%20b\n"),
    ("{{.Request.ContentLength}}", "4\n"),
    (
        "{{.Revision.Name}}, {{.Revision.Namespace}}, {{.Revision.Service}}, {{.Revision.Configuration}}, "
        "{{.Revision.PodName}}, {{.Revision.PodIP}}",
        "testRevision, testNs, testSvc, testConfig, , \n",
    ),
    ("{{.Request.Method}} {{.Request.Host}} {{.Request.Proto}} {{.Request.ProtoMajor}}", None),
    ("{{js .Request.UserAgent}}|{{html .Request.UserAgent}}|{{urlquery .Request.RequestURI}}", None),
    ("{{.Request.URL.Path}} {{.Request.URL.RawQuery}} {{.Request.URL.Query.Get `y`}}", None),
    ('{{.Request.Header.Get "x-a" | printf "%q"}}{{index .Request.Header "X-A" 1}}', '"one"two\n'),
    ('{{.Request.Header.Get "x-b"}}{{index .Request.Header "X-B"}}{{len .Request.Header}}', "[]4\n"),
    (
        "{{.Response.Latency}} {{.Response.Size}} {{printf `%.3f %d %v %5s|` .Response.Latency 3 1.5 `a`}}",
        None,
    ),
    ("{{if eq .Response.Code 200 201}}ok{{else if ge .Response.Code 500}}bad{{else}}other{{end}}", "ok\n"),
    ("{{if ge .Response.Code 500}}bad{{else if lt .Response.Code 400}}fine{{end}}!", "fine!\n"),
    ("{{if and .TraceID (not (eq .Request.Method `GET`))}}traced{{end}}", "traced\n"),
    ("a {{- /* nothing */ -}} b {{print 1 2 `c` 3}} {{or `` `d`}} {{true}}", "ab 1 2c3 d true\n"),
]


@pytest.mark.parametrize(("template", "text"), [(t, x) for t, x in LINES if x is not None])
def test_lines(template: str, text: str) -> None:
    assert line(template)(ENTRY) == text


def test_knatives_own_template_makes_json() -> None:
    made = json.loads(line(DEFAULT)(ENTRY).replace("\\'", "'"))
    assert made["httpRequest"] == {
        "requestMethod": "POST",
        "requestUrl": "/testpage?x=1&y=a%20b",
        "requestSize": "4",
        "status": 200,
        "responseSize": "5",
        "userAgent": 'cu"<rl>',
        "remoteIp": "1.2.3.4:5678",
        "serverIp": "",
        "referer": "",
        "latency": "0.25s",
        "protocol": "HTTP/1.1",
    }
    assert made["traceId"] == "0af7651916cd43dd8448eb211c80319c"


def test_the_trace_of_b3_counts_where_there_is_no_other() -> None:
    assert line("{{.TraceID}}")(ENTRY._replace(headers={"X-B3-Traceid": ["abc"]})) == "abc\n"


@pytest.mark.parametrize("name", ["Traceparent", "X-B3-Traceid"])
def test_a_client_adds_nothing_to_the_line_by_its_trace(name: str) -> None:
    forged = '", "admin": "yes'
    value = f"00-{forged}-b7ad6b7169203331-01" if name == "Traceparent" else forged
    made = json.loads(line(DEFAULT)(ENTRY._replace(headers={name: [value]})).replace("\\'", "'"))
    assert made["traceId"] == ""
    assert "admin" not in made


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{}}", "nothing in it"),
        ("{{.Request.Something}}", ".Request.Something is not known; there are"),
        ("{{.Request.Method", "not closed"),
        ("{{if .TraceID}}x", "not closed"),
        ("{{if .TraceID}}x{{else}}y{{else}}z{{end}}", "not closed"),
        ("x{{end}}", "without an if"),
        ("{{range .Request.Header}}{{end}}", "range is not known"),
        ("{{$x := 3}}", "can't be read"),
        ("{{.Request.Method 3}}", "takes no arguments"),
        ("{{.Request.Header.Get}}", "takes 1 argument"),
        ("{{print .Request.Header.Get}}", "in parentheses"),
        ("{{js}}", "needs an argument"),
        ("{{(js .TraceID}}", "not closed"),
        ("{{.TraceID)}}", "one too many"),
        ("{{" + "(" * 5000, "not closed"),
        ("{{" + "(" * 5000 + ".TraceID" + ")" * 5000 + "}}", "too deep"),
    ],
)
def test_what_can_not_be_read_is_quoted(template: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said.replace("(", r"\(")):
        line(template)


_PARTS = [
    *(
        "{{",
        "}}",
        "{{-",
        "-}}",
        " ",
        "if ",
        "else",
        "end",
        "|",
        "(",
        ")",
        "js",
        "printf",
        "eq",
        "index",
        '"a"',
        "`",
        "3",
    ),
    *(
        ".Request",
        ".Request.Method",
        ".Request.Header",
        ".Request.Header.Get",
        ".TraceID",
        "x",
        "/*",
        "*/",
        ".",
        "$",
    ),
]
_GO = """package main

import ("bufio"; "encoding/json"; "net/http"; "os"; "text/template")

type response struct { Code, Size int; Latency float64 }
type revision struct { Name, Namespace, Service, Configuration, PodName, PodIP string }
type input struct { Request *http.Request; Response *response; Revision *revision; TraceID string }

func main() {
	var templates []string
	json.NewDecoder(os.Stdin).Decode(&templates)
	file, _ := os.Open(os.Args[1])
	request, err := http.ReadRequest(bufio.NewReader(file))
	if err != nil { panic(err) }
	request.RemoteAddr = "1.2.3.4:5678"
	in := input{request, &response{200, 5, 0.25},
		&revision{"testRevision", "testNs", "testSvc", "testConfig", "", ""},
		"0af7651916cd43dd8448eb211c80319c"}
	lines := []string{}
	for _, text := range templates {
		out, err := os.CreateTemp("", "line")
		if err != nil { panic(err) }
		if err := template.Must(template.New("x").Parse(text + "\\n")).Execute(out, in); err != nil { panic(err) }
		made, _ := os.ReadFile(out.Name())
		os.Remove(out.Name())
		lines = append(lines, string(made))
	}
	json.NewEncoder(os.Stdout).Encode(lines)
}
"""


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go's text/template")
def test_go_makes_the_same_lines(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(_GO)
    (tmp_path / "head").write_bytes(
        b"POST /testpage?x=1&y=a%20b HTTP/1.1\r\nHost: example.com\r\n"
        + b"".join(
            f"{name}: {value}\r\n".encode() for name, values in ENTRY.headers.items() for value in values
        )
        + b"\r\nbody"
    )
    templates = [template.removesuffix("\n") for template, _ in LINES]
    ran = subprocess.run(
        ["go", "run", "main.go", "head"],
        cwd=tmp_path,
        input=json.dumps([*templates, DEFAULT]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == [line(template)(ENTRY) for template in [*templates, DEFAULT]]


@given(st.lists(st.sampled_from(_PARTS), max_size=8).map("".join))
def test_whatever_is_written_is_a_line_or_an_error_that_quotes_it(template: str) -> None:
    try:
        made = line(template)
    except TemplateError:
        return
    with contextlib.suppress(TypeError, AttributeError, ValueError):  # of functions with what they can't take
        assert made(ENTRY).endswith("\n")
