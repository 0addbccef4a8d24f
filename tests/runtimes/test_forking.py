"""Processes of ranks: forked with the environment of whoever starts them, watched by it, and gone with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from runtimes.vllm_pd import options
from runtimes.vllm_pd.ranks import forking
from tests.support.processes import lives

WAIT_S = 60.0


def told(path: str) -> None:
    assert {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} == {signal.SIG_DFL}
    Path(path).write_text(f"{os.getpid()} {os.getppid()} {os.environ.get('RANK', '')} {'marked' in sys.argv}")


def stays(path: str) -> None:
    told(path)
    time.sleep(WAIT_S)


def story(folder: Path) -> None:
    """An instance of one thread, in a process of its own."""
    sys.argv.append("marked")
    assert forking.possible({})
    assert not forking.serves()
    forking.serve()
    assert forking.serves()
    os.environ.pop("OMP_NUM_THREADS", None)  # no torch here
    context = forking.Context()
    started = []
    for rank, target in enumerate((told, stays)):
        os.environ["RANK"] = str(rank)
        kwargs = {"path": str(folder / str(rank))}
        started.append(context.Process(target=target, kwargs=kwargs, name=f"rank-{rank}", daemon=True))
        started[-1].start()
    os.environ["RANK"] = "none"
    forking.all_started()
    assert not forking.serves()
    started[0].join(WAIT_S)
    assert started[0].exitcode == 0
    until(lambda: (folder / "1").exists() and (folder / "1").read_text() != "")
    assert started[1].is_alive()
    os.kill(started[1].pid, signal.SIGKILL)
    started[1].join(WAIT_S)
    assert started[1].exitcode == -signal.SIGKILL
    print(os.getpid(), flush=True)
    os._exit(0)


def until(condition: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_ranks_of_a_user_who_wants_them_started_are_not_forked() -> None:
    program = "from runtimes.vllm_pd.ranks import forking; print(forking.possible())"
    for asked, expected in (("spawn", "False"), ("fork", "True"), ("", "True")):
        environ = os.environ | {forking.METHOD: asked}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[0] == expected
    ours: dict[str, str] = {}
    options.apply_environment(ours)
    assert forking.METHOD not in ours, "what the user has said could not be told from it"


def test_a_server_leaves_nothing_behind_of_an_instance_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal; from runtimes.vllm_pd.ranks import forking; forking.serve();"
        "print(forking._folders[0], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environ,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    folder = Path(done.stdout.strip())
    assert folder.parent == tmp_path
    until(lambda: not folder.exists())


def test_ranks_are_forked_with_what_their_instance_has_and_end_with_it(tmp_path: Path) -> None:
    words = f"story(Path({str(tmp_path)!r}))"
    program = f"from pathlib import Path; from tests.runtimes.test_forking import story; {words}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    ranks = [(tmp_path / str(rank)).read_text().split() for rank in range(2)]
    assert [rank[2:] for rank in ranks] == [["0", "True"], ["1", "True"]]
    assert ranks[0][1] == ranks[1][1] != done.stdout.strip(), "of one server, which is not the instance"
    until(lambda: not lives(int(ranks[0][1])))
