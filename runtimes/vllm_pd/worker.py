"""vLLM's worker extension of an instance: what a worker's process must know that isn't in vLLM.

Every worker imports it, wherever it runs (--worker-extension-cls), and that is all it is for.
"""

from __future__ import annotations

from runtimes.vllm_pd.resuming import teach_model_runner

teach_model_runner()


class Worker:
    """Adds nothing to vLLM's own."""
