"""vLLM's worker extension of an instance: what a worker's process must know that isn't in vLLM.

Every worker imports it, wherever it runs (--worker-extension-cls), and that is all it is for. An instance does, too.
"""

from __future__ import annotations

from typing import Final

from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.platforms import current_platform

from runtimes.vllm_pd.resuming import teach_model_runner

_SPIN_S: Final = 0.001


def calm_queues() -> None:
    """Who waits for a word of another process of the engine looks for it without a pause for a second, in vLLM.

    On a CPU it takes the time of those who compute; there it sleeps sooner, and is woken.
    """
    init = SpinCondition.__init__
    if current_platform.is_cpu() and init.__defaults__ == (1,):  # busy_loop_s
        init.__defaults__ = (_SPIN_S,)


teach_model_runner()
calm_queues()


class Worker:
    """Adds nothing to vLLM's own."""
