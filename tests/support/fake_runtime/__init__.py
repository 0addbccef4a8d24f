"""A runtime without a model: it keeps the contract between an instance and its node agent, and nothing else.

Started as `python -m tests.support.fake_runtime`, or forked by `tests.support.fake_runtime.zygote`.
"""
