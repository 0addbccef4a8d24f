"""A runtime whose engine sleeps, on a machine without a GPU: it stands in for vLLM in slots of level S2.

Started as `python -m tests.support.sleeping_runtime`, or forked by `tests.support.sleeping_runtime.zygote`.
"""
