"""make demo: from zero to the first token on one machine, unified and with prefill and decode apart.

Everything goes through the command that users have and the official openai client. Every wait is bounded and shows
what it waits for; whatever fails, the cluster is taken down and the exit code is 1. `--keep` leaves it running.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import openai
from rich.console import Console
from rich.rule import Rule

from kserve_ext.cli.embedded.folder import Folder
from tools.setup.layout import Layout

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
STORY = "Once upon a time there was a cluster with nothing running in it. Then a request arrived. "
TOKENS = 32
REQUEST_S = 120.0
UNIFIED, PAIR = ("tiny", "tiny"), ("tiny-pd-decode", "tiny-pd")  # service, model name

out = Console(highlight=False)


class DemoFailed(Exception):
    """What did not happen; the log folder is printed beside it."""


class Answer(NamedTuple):
    text: str
    tokens: list[int]
    headers: dict[str, str]
    first_s: float  # until the first token
    total_s: float


class Galaxy:
    """The command, on the demo's data folder."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def __call__(self, *args: str, show: bool = True, timeout_s: float = 120.0) -> str:
        if show:
            out.print(f"\n[bold]$ galaxy {' '.join(args)}[/]", soft_wrap=True)
        done = subprocess.run(
            [sys.executable, "-m", "kserve_ext.cli", args[0], "--data", str(self.data), *args[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "COLUMNS": str(out.width)},
        )
        if show:
            out.print(done.stdout.rstrip(), markup=False, soft_wrap=True)
        if done.returncode:
            raise DemoFailed(f"galaxy {args[0]} ended with {done.returncode}\n{done.stderr.rstrip()}")
        return done.stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("status", "-o", "json", show=False))
        return found

    def address(self) -> str:
        return str(json.loads((self.data / "cluster.json").read_text())["http"])


def wait(what: str, check: Callable[[], str], timeout_s: float) -> float:
    """Until check() gives "": what is still missing. Seconds it took."""
    began = time.monotonic()
    with out.status(what) as status:
        while True:
            missing = check()
            took = time.monotonic() - began
            if not missing:
                return took
            if took > timeout_s:
                raise DemoFailed(f"{what}: not within {timeout_s:.0f} s: {missing}")
            status.update(f"{what}, {took:.0f} s: {missing}")
            time.sleep(0.2)


def client(galaxy: Galaxy, service: str) -> openai.OpenAI:
    """The official client; the Host header chooses the service."""
    return openai.OpenAI(
        base_url=f"http://{galaxy.address()}/v1",
        api_key="none",
        default_headers={"Host": f"{service}.default.galaxy.local"},
        timeout=REQUEST_S,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),  # this machine's cluster is behind no proxy
    )


def stream(galaxy: Galaxy, target: tuple[str, str], prompt: str, *, show: bool = True) -> Answer:
    """One streamed completion, greedy; prints the text as it comes."""
    service, model = target
    began = time.monotonic()
    first_s = 0.0
    words: list[str] = []
    tokens: list[int] = []
    raw = client(galaxy, service).completions.with_raw_response.create(
        model=model,
        prompt=prompt,
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    headers = dict(raw.headers)
    for chunk in raw.parse():
        for choice in chunk.choices:
            if not first_s:
                first_s = time.monotonic() - began
            words.append(choice.text)
            tokens += getattr(choice, "token_ids", None) or []
            if show:
                out.print(choice.text, end="", markup=False, style="cyan")
    if show:
        out.print()
    answer = Answer("".join(words), tokens, headers, first_s, time.monotonic() - began)
    named = ("x-request-id", "x-cold-start", "x-kv-transfer")
    facts = ", ".join(f"{name}: {headers.get(name, '(missing)')}" for name in named)
    out.print(f"first token after {answer.first_s:.2f} s, all after {answer.total_s:.2f} s", style="bold")
    out.print(facts, markup=False, soft_wrap=True)
    if not tokens:
        raise DemoFailed(f"{service} answered without tokens: {''.join(words)!r}")
    return answer


def expect(true: bool, what: str) -> None:
    if not true:
        raise DemoFailed(what)
    out.print(f"[green]✓[/] {what}")


def start(galaxy: Galaxy) -> None:
    out.print(Rule("an empty cluster"))
    models = Layout.of_user().tiny_model_link.parent
    size = ("--node-cpu", "4", "--node-memory", "8Gi")
    several = ("--dispatch", "2", "--schedule", "2", "--nodes", "1")
    galaxy("up", "--http-port", "0", *several, *size, "--pvc", f"models={models}")
    galaxy("apply", "--no-wait", "-f", str(EXAMPLES))
    status: dict[str, Any] = {}

    def missing() -> str:
        status.update(galaxy.status())
        return _no_zygote(status)

    wait("zygote (a process with vLLM imported)", missing, 150)
    galaxy("get", "isvc")
    expect(not status["instances"], "no instance runs")


def _no_zygote(status: dict[str, Any]) -> str:
    waiting = [n["node"] for n in status["nodes"] if not sum(n["slots"].values())]
    return f"not yet on {', '.join(waiting)}" if waiting else ""


def unified(galaxy: Galaxy) -> Answer:
    out.print(Rule("a request at zero"))
    answer = stream(galaxy, UNIFIED, STORY)
    expect(answer.headers.get("x-cold-start") == "true", "the answer says that it was a cold start")
    out.print("\nthe same again, now that an instance runs:")
    again = stream(galaxy, UNIFIED, STORY)
    expect(again.headers.get("x-cold-start") == "false", "the answer says that it was warm")
    expect(again.tokens == answer.tokens, "greedy decoding gives the same tokens")
    out.print("\nwhere the first one's time went:")
    galaxy("explain", answer.headers["x-request-id"])
    return answer


def pair(galaxy: Galaxy) -> None:
    out.print(Rule("prefill and decode apart, both at zero"))
    answer = stream(galaxy, PAIR, STORY * 6)
    expect(answer.headers.get("x-cold-start") == "true", "prefill and decode were started for this request")
    rung = answer.headers.get("x-kv-transfer", "none").partition(";")[0]
    expect(rung not in ("", "none"), f"the KV cache went from prefill to decode over {rung}")
    galaxy("explain", answer.headers["x-request-id"])
    out.print("\nthe same prompt to the unified service:")
    one = stream(galaxy, UNIFIED, STORY * 6)
    expect(
        answer.tokens == one.tokens, f"{len(one.tokens)} tokens of prefill/decode equal those of one engine"
    )
    galaxy("status")


def back_to_zero(galaxy: Galaxy) -> None:
    out.print(Rule("back to zero"))
    took = wait("instances drain and end", lambda: _instances(galaxy.status()), 90)
    galaxy("get", "isvc")
    expect(True, f"nothing runs any more, {took:.0f} s after the last answer")


def _instances(status: dict[str, Any]) -> str:
    """What a node runs that does not answer at this moment is not among them."""
    if silent := [n["node"] for n in status["nodes"] if "error" in n]:
        return f"no answer of {', '.join(silent)}"
    return ", ".join(f"{i['id']} {i.get('state', '')}" for i in status["instances"])


def try_next(galaxy: Galaxy) -> None:
    address, data = galaxy.address(), f"--data {galaxy.data}"
    command = (
        ".venv/bin/galaxy" if (ROOT / ".venv/bin/galaxy").exists() else ".venv/bin/python -m kserve_ext.cli"
    )
    body = '{"model": "tiny", "prompt": "hello", "max_tokens": 16, "stream": true}'
    out.print(Rule("it is still running; try"))
    for line in (
        f"curl -si http://{address}/v1/completions -H 'Host: tiny.default.galaxy.local' "
        f"-H 'Content-Type: application/json' -d '{body}'",
        f"{command} explain REQUEST-ID {data}",
        f"{command} status --watch {data}",
        f"{command} describe isvc tiny {data}",
        f"{command} logs tiny --follow {data}",
        f"{command} top {data}",
        f"{command} down {data}",
    ):
        out.print(line, markup=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    keep: bool = parser.parse_args().keep
    home = os.environ.get("GALAXY_HOME")
    galaxy = Galaxy((Path(home).expanduser() if home else Path.home() / ".galaxy") / "demo")
    began = time.monotonic()
    good = over = False  # over: nothing is to be taken down any more
    try:
        clear(galaxy)
        start(galaxy)
        unified(galaxy)
        pair(galaxy)
        back_to_zero(galaxy)
        if keep:
            over = True
            try_next(galaxy)
        else:
            galaxy("down", timeout_s=180)
            over = True
        good = True
        out.print(f"[green]done[/] after {time.monotonic() - began:.0f} s")
    except (DemoFailed, openai.OpenAIError, OSError, subprocess.TimeoutExpired) as error:
        out.print(f"error: the demo failed after {time.monotonic() - began:.0f} s", style="red")
        out.print(f"  why: {error}", markup=False)
        out.print(f"  do: see the logs in {galaxy.data / 'log'} and {galaxy.data / 'nodes'}", markup=False)
    except KeyboardInterrupt:
        out.print("interrupted")
    finally:  # also when nobody reads what is printed any more: rich ends the program then
        if not over:
            galaxy("down", show=False, timeout_s=180)
    return 0 if good else 1


def clear(galaxy: Galaxy) -> None:
    """Takes an earlier demo away; its nodes would have the model already."""
    if Folder(galaxy.data).living():
        out.print(f"an earlier demo runs in {galaxy.data}: it is stopped first", markup=False, soft_wrap=True)
    galaxy("down", show=False)
    if (galaxy.data / "cluster.json").exists():
        shutil.rmtree(galaxy.data)


if __name__ == "__main__":
    sys.exit(main())
