"""One fake instance: says importing, loading, ready; has a pulse; answers GET; drains on SIGTERM; or fails as told.

--refuse TEXT      a start that can't succeed: status failed, exit code 2
--crash CODE       exits with this code instead of getting ready
--stuck            never gets ready
--drain SECONDS    how long the drain takes; longer than it is given means that it has to be killed
--drain-until FILE and until that file is there
--child            has a process of its own, in its group, that ignores SIGTERM
--print BYTES      prints that much
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from runtimes.vllm_pd.status import StartRefused, Status


class Page(http.server.BaseHTTPRequestHandler):
    model = ""

    def do_GET(self) -> None:
        facts = {"pid": os.getpid(), "argv": sys.argv, "env": dict(os.environ), "model": _files()}
        body = json.dumps(facts).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--refuse", default="")
    parser.add_argument("--crash", type=int)
    parser.add_argument("--stuck", action="store_true")
    parser.add_argument("--drain", type=float, default=0.0)
    parser.add_argument("--drain-until", type=Path)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--print", type=int, default=0)
    args = parser.parse_args(argv)
    Page.model = args.model
    status = Status.from_environment()
    status.enter("importing")
    status.event("imported")
    print("the fake instance starts", flush=True)
    if args.print:
        os.write(1, (b"y" * 99 + b"\n") * (args.print // 100))
    if args.child:
        subprocess.Popen(["sh", "-c", "trap '' TERM; echo child $$; while :; do sleep 1; done"])
    status.enter("loading")
    if args.refuse:
        status.fail(StartRefused(args.refuse, "--model", "give another one"))
        return 2
    if args.crash is not None:
        print("last words", flush=True)
        return int(args.crash)
    if args.stuck:
        signal.pause()

    class Server(http.server.ThreadingHTTPServer):
        def service_actions(self) -> None:
            status.beat()

    server = Server(("127.0.0.1", args.port), Page)

    def drain(number: int, frame: object) -> None:
        def end() -> None:
            status.enter("draining")
            time.sleep(args.drain)
            while args.drain_until and not args.drain_until.exists():
                time.sleep(0.01)
            server.shutdown()

        threading.Thread(target=end).start()

    signal.signal(signal.SIGTERM, drain)
    status.event("weights_loaded")
    status.event("ready")
    status.enter("ready")
    server.serve_forever(poll_interval=0.02)
    return 0


def _files() -> list[str]:
    folder = Path(Page.model or "/nowhere")
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
