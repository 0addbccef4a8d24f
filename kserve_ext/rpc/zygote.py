"""A process that has done a program's imports and forks processes of it on request: for runtimes, and for functions.

One JSON request per connection ({"argv", "env", "cwd", "stdout", "stderr", "instance_dir"} -> {"pid"}, with
"stdio": "inherit" for the zygote's own output, "hold": true so that the next is kept ready only after a ping;
{"ping": true} -> {"ready", ...}; beside the pid, "forked" says why it is not what was kept ready). It has one thread
and starts no loop, so that a fork is whole. It reaps its children and writes exit.json beside their status; SIGTERM
ends it and none of them, and it outlives who started it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from kserve_ext.rpc.kept import Kept

_REQUEST_S = 5.0
#: A node may be asked for hundreds of instances at once, and who finds the queue full has to dial again.
_BACKLOG = 4096
_MAX_REQUEST = 1 << 20
#: SIGPIPE stays ignored, as in every Python: a peer that hangs up must not end its instance.
_RESET = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Program(NamedTuple):
    """What is forked."""

    name: str  # its package, for `ps` and for answers
    prepare: Callable[[], None]  # its imports, done once
    main: Callable[[list[str]], int]  # what each fork runs, with its arguments; the exit code
    #: Run in a fork ahead of requests, with the path of the socket it is to listen on (kept.py).
    keep: Callable[[str], int] | None = None
    no_keep: str = ""  # why there is none, where there should be


class Zygote:
    """Listens at once; whoever connects before the imports are done waits for its answer until they are."""

    def __init__(self, path: str, name: str, program: Program) -> None:
        self._path = path
        self._name = name
        self._program = program
        self._children: dict[int, Path | None] = {}
        self._ending = False
        self._held = False  # nothing is kept ready until somebody asks whether it is
        self._imported_s = 0.0
        self._kept = Kept(f"{path}.kept")
        # Who waits for the file may connect at once: it gets its name when somebody listens.
        new = f"{path}.new"
        Path(new).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(new)
        os.chmod(new, 0o600)
        self._listener.listen(_BACKLOG)
        os.replace(new, path)
        self._listener.setblocking(False)

    def run(self) -> None:
        started = time.monotonic()
        self._program.prepare()
        with contextlib.suppress(ImportError):
            importlib.import_module("setproctitle")  # so that no fork has to look for it
        assert_forkable()
        gc.collect()
        gc.freeze()  # a child's collector then leaves these pages shared
        self._imported_s = time.monotonic() - started
        wakeup = self._catch_signals()
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(wakeup, selectors.EVENT_READ)
            self._keep()
            while not self._ending:
                for key, _ in selector.select():
                    if key.fileobj is wakeup:
                        wakeup.recv(4096)
                        self._reap()
                    else:
                        self._accept()
        self._kept.end()
        Path(self._path).unlink(missing_ok=True)

    def _catch_signals(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, self._on_term)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(theirs.fileno())
        self._wakeup_pair = (ours, theirs)
        return ours

    def _on_term(self, number: int, frame: Any) -> None:
        self._ending = True

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        with connection:
            connection.settimeout(_REQUEST_S)
            try:
                answer = self._answer(_read(connection), connection)
            except (OSError, ValueError, KeyError, TypeError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, request: dict[str, Any], connection: socket.socket) -> dict[str, Any]:
        if request.get("ping"):
            if self._held:
                self._held = False
                self._keep()
            return {
                "ready": self._program.keep is None or bool(self._kept.reason) or self._kept.ready(),
                "kept": self._program.no_keep or self._kept.reason or self._kept.pid,
                "name": self._name,
                "runtime": self._program.name,
                "pid": os.getpid(),
                "imported_s": self._imported_s,
                "children": sorted(self._children),
            }
        argv = [str(word) for word in request["argv"]]
        folder = Path(request["instance_dir"]) if request.get("instance_dir") else None
        self._held = bool(request.get("hold"))
        pid = self._kept.become(request) or self._fork(argv, request, self._program.main, connection)
        self._children[pid] = folder
        why = self._kept.refusal if self._program.keep is not None else self._program.no_keep
        return {"pid": pid, "forked": why}

    def _keep(self) -> None:
        """Forks what is kept ready, when there is room for it."""
        keep = self._program.keep
        wanted = self._kept.wanted and not self._children and not self._ending and not self._held
        if keep is not None and wanted:
            path = self._kept.path
            self._kept.forked(self._fork([], {"stdio": "inherit"}, lambda argv: keep(path), None))

    def _fork(
        self,
        argv: list[str],
        request: dict[str, Any],
        main: Callable[[list[str]], int],
        connection: socket.socket | None,
    ) -> int:
        """`connection`: over which it was asked for."""
        told, tell = os.pipe()
        try:
            pid = os.fork()
        except OSError:  # no room for one more process: the next request may find some
            os.close(told)
            os.close(tell)
            raise
        if pid == 0:
            if connection is not None:
                connection.close()
            os.close(told)
            self._become_instance(argv, request, main, tell)
        os.close(tell)
        os.read(told, 1)  # until its session is its own: who ends this zygote's group then doesn't end it
        os.close(told)
        return pid

    def _become_instance(
        self, argv: list[str], request: dict[str, Any], main: Callable[[list[str]], int], tell: int
    ) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _RESET:
                signal.signal(number, signal.SIG_DFL)
            for end in (self._listener, *self._wakeup_pair):
                end.close()
            # In its folder before its session is its own: who kills the zygote's group finds it in one of the two.
            if request.get("cwd"):
                os.chdir(request["cwd"])
            os.setsid()
            os.close(tell)
            if request.get("stdio") != "inherit":
                redirect(request.get("stdout") or os.devnull, request.get("stderr") or os.devnull)
            os.environ.update({str(k): str(v) for k, v in (request.get("env") or {}).items()})
            own = arguments_only(argv)
            sys.argv = [self._program.name, *own]
            _rename(f"{self._program.name} {' '.join(own)}")
            code = main(own)
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._kept.ended(pid, os.waitstatus_to_exitcode(status))
            folder = self._children.pop(pid, None)
            if folder is not None:
                code = os.waitstatus_to_exitcode(status)
                facts = {"code": max(code, 0), "signal": max(-code, 0), "at": time.time()}
                with contextlib.suppress(OSError):  # the agent may have removed the folder
                    temporary = folder / ".exit.json"
                    temporary.write_text(json.dumps(facts))
                    temporary.replace(folder / "exit.json")
        self._keep()


def arguments_only(argv: list[str]) -> list[str]:
    """The options of a command that may begin with an interpreter, -m and a module."""
    if "-m" in argv[:4]:
        return argv[argv.index("-m") + 2 :]
    return argv


def _read(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while b"\n" not in data and len(data) < _MAX_REQUEST:
        more = connection.recv(65536)
        if not more:
            break
        data += more
    request = json.loads(data)
    if not isinstance(request, dict):
        raise ValueError("the request is not a JSON object")
    return request


def redirect(stdout: str, stderr: str) -> None:
    """From now on this process writes there, and reads nothing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for path, target, mode in ((os.devnull, 0, os.O_RDONLY), (stdout, 1, flags), (stderr, 2, flags)):
        source = os.open(path, mode, 0o644)
        os.dup2(source, target)
        os.close(source)


def _rename(title: str) -> None:
    """So that `ps` tells instances apart; a nicety that needs setproctitle."""
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle(title)


#: Threads that are no harm, by how their names begin: that of NVIDIA's management library, by which torch counts GPUs
#: without beginning CUDA. Had CUDA been begun, a fork could not use it; it says so.
_HARMLESS = ("cuda",)


def assert_forkable() -> None:
    """Raises if a thread other than the calling one exists, whether Python knows of it or not."""
    own = str(threading.get_native_id())
    others = []
    for task in os.listdir("/proc/self/task"):
        if task != own:
            with contextlib.suppress(FileNotFoundError):  # it has ended
                others.append(Path(f"/proc/self/task/{task}/comm").read_text().strip())
    others = [name for name in others if not name.startswith(_HARMLESS)]
    if threading.active_count() != 1 or others:
        names = [thread.name for thread in threading.enumerate()]
        raise RuntimeError(f"not forkable: threads of the system: {others}, Python's: {names}")


def command_line(package: str) -> argparse.ArgumentParser:
    """The options of `python -m PACKAGE.zygote`."""
    parser = argparse.ArgumentParser(prog=f"{package}.zygote", description="Forks processes on request.")
    parser.add_argument("--socket", required=True, help="unix socket to listen on")
    parser.add_argument("--name", required=True, help="what to call this zygote in its answers")
    return parser


def serve(args: argparse.Namespace, program: Program) -> None:
    """Until SIGTERM, in a session of its own."""
    with contextlib.suppress(OSError):
        os.setsid()
    Zygote(args.socket, args.name, program).run()
