"""When figures are valid: what others may use of the machine, and that processes of the bench are not others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.quiet import Usage, judge

NONE = Usage(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("after", "refused"),
    [
        (Usage(busy=100.0, stolen=0.0, ours=95.0), ""),
        (Usage(busy=100.0, stolen=0.0, ours=101.0), ""),  # two clocks, never less than none
        (Usage(busy=100.0, stolen=0.0, ours=80.0), "others used 10%"),
        (Usage(busy=100.0, stolen=10.0, ours=100.0), "stolen was 5%"),
        (Usage(busy=100.0, stolen=10.0, ours=80.0), "others used 10% of the machine (at most 5%) and stolen"),
    ],
)
def test_others_and_the_hypervisor_make_figures_invalid(after: Usage, refused: str) -> None:
    verdict = judge(NONE, after, seconds=100.0, cores=2, load=0.4)
    assert verdict.refused.startswith(refused)
    assert bool(verdict.refused) == bool(refused)
    assert "load average 0.4 before" in verdict.text


#: In a process of its own, since `usage` waits for all children. The grandchild loses its parent.
SCRIPT = """
import subprocess, sys, time
from bench.quiet import Watch, usage
Watch()
before = usage()
work = "import sys, time; sum(range(10**7)); sys.stdout.write(str(time.process_time()))"
start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {work!r}])"
child = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True)
took = float(child.stdout.read())  # the end of it: the grandchild has ended as well
child.wait()
while usage().ours - before.ours < took:
    time.sleep(0.01)
print("counted")
"""


def test_what_ended_children_used_is_ours_also_of_those_that_lost_their_parent() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "counted\n"
