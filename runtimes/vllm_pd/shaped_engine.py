"""A shaped engine (slot S1): everything of an engine but a service's weights, and the way from there to a service.

The engine's core (scheduler, model runner, KV cache) is built once, with zeros for weights. Whatever speaks for it
(tokenizer, chat template, sampling defaults, HTTP routes, statistics) is made anew for each service from its own
arguments, so nothing of another service can be left there. What the core keeps of a service is brought over by
`_put`, and taken away by `release`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from kserve_ext.core.standby import shape
from runtimes.vllm_pd import shape_facts, weights
from runtimes.vllm_pd.connector import join_instance, settle
from runtimes.vllm_pd.engine import Engine, configuration, front, log_stats
from runtimes.vllm_pd.inproc import InprocAsyncClient
from runtimes.vllm_pd.server import routes
from runtimes.vllm_pd.status import StartRefused

#: Of a service; no route looks at them.
_NO_ROUTE = (
    "model",
    "model_tag",
    "tokenizer",
    "served_model_name",
    "host",
    "port",
    "load_format",
    "skip_tokenizer_init",
)


class NotThisShape(StartRefused):
    """The service needs another engine: nothing has happened to this one."""

    def __init__(self, found: shape.Difference) -> None:
        super().__init__(
            found.reason, found.field, "start it from a zygote, or keep standby engines of its shape"
        )


class Spent(Exception):
    """The engine can't become another service's: its process has to be replaced."""


class ShapedEngine:
    """`args`: an instance's, of which the model's folder need have no more than config.json."""

    def __init__(self, args: Namespace, kv_transfer: dict[str, Any] | None = None) -> None:
        """Blocks while the engine is built. Raises StartRefused when there is no such shape, or vLLM's errors."""
        from vllm.v1.executor import Executor

        weights.register()
        args.load_format = weights.NO_WEIGHTS
        args.skip_tokenizer_init = True
        config = self._config = configuration(args, kv_transfer)
        self._environ = dict(os.environ)  # vLLM adds to it
        self.facts = _facts(args, config, self._environ)
        found = shape.unshapeable(self.facts)
        if found is not None:
            raise StartRefused(
                f"an engine that waits for weights has {found.shaped}, not {found.asked}",
                found.field,
                "keep zygotes for it",
            )
        self._routes: tuple[str, Any] = ("", None)
        self.client = InprocAsyncClient(config, Executor.get_class(config), log_stats(args))
        self.client.submit(lambda core: core.collective_rpc(_in_worker(weights.check_replaceable))).result()

    def configure(self, args: Namespace, kv_transfer: dict[str, Any] | None, env: Mapping[str, str]) -> Any:
        """The configuration of the service, which has `env` beside this process's. Raises NotThisShape."""
        forget_files()
        config = configuration(args, kv_transfer)
        found = shape.difference(self.facts, _facts(args, config, {**self._environ, **env}))
        if found is not None:
            raise NotThisShape(found)
        return config

    def take(self, args: Namespace, config: Any, *, load: bool = True) -> tuple[Engine, Future[int]]:
        """The service's engine at once, and the number of its tensors when they are loaded. Requests wait for that.

        `config`: of `configure`. Should loading fail, the engine is spent.
        """
        config.cache_config = self._config.cache_config  # with what the core has found out about its cache
        config.compilation_config = self._config.compilation_config
        loading = self.client.submit(lambda core: self._put(core, config, load))
        return front(args, config, None, lambda: self.client), loading

    def build_routes(self, args: Namespace) -> None:
        """Ahead: takes longer than anything else that a service needs besides its weights."""
        _forget_metrics()
        tasks = self.client.submit(lambda core: core.get_supported_tasks()).result()
        self._routes = _routes_key(args, tasks), routes(args, tasks, self._config.model_config)

    def routes(self, args: Namespace, tasks: Any, model_config: Any) -> Any:
        """What was built ahead, and nobody has used, if its arguments are the service's; else another."""
        key, app = self._routes
        self._routes = ("", None)
        if key == _routes_key(args, tasks):
            return app
        _forget_metrics()
        return routes(args, tasks, model_config)

    def _put(self, core: Any, config: Any, load: bool) -> int:
        """On the engine's thread."""
        from vllm.v1.structured_output import StructuredOutputManager

        from runtimes.vllm_pd import resuming

        _empty(core)
        vars(self._config.model_config).update(vars(config.model_config))
        count = 0
        if load:
            load_config = config.load_config
            (count,) = core.collective_rpc(_in_worker(weights.load), args=(config.model_config, load_config))
        old, new = core.structured_output_manager, StructuredOutputManager(config)
        core.structured_output_manager = core.scheduler.structured_output_manager = new
        resuming.advance_grammars(core)
        for name in ("executor", "executor_for_fillmask"):
            if hasattr(old, name):
                getattr(old, name).shutdown(wait=False)
        join_instance(core)
        return int(count)

    def release(self, engine: Engine) -> None:
        """The service has ended: back to the shape. Blocks. Raises Spent."""
        if engine.output_handler is not None:
            engine.output_handler.cancel()
        engine.renderer.shutdown()
        del engine.engine_core  # else the core ends when vLLM's object is collected
        try:
            self.client.submit(_leave).result()
        except Exception as error:
            raise Spent(str(error)) from error
        self.client.forget()


def _routes_key(args: Namespace, tasks: Any) -> str:
    """Everything that routes and what stands before them are made of, and some more."""
    given = {name: value for name, value in vars(args).items() if name not in _NO_ROUTE}
    return repr((sorted(given.items()), tasks, os.environ.get("VLLM_API_KEY")))


def forget_files() -> None:
    """vLLM remembers tokenizers and templates by the name of their folder, and the next service's may have it."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("vllm.transformers_utils", "vllm.tokenizers", "vllm.renderers")):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


def _facts(args: Namespace, config: Any, environ: Mapping[str, str]) -> dict[str, str]:
    more = {"args.role": args.role, "args.disable_log_stats": str(args.disable_log_stats)}
    return shape_facts.facts(config, environ) | more


def _in_worker(call: Any) -> Any:
    """vLLM hands over a wrapper of the worker."""

    def run(wrapper: Any, *args: Any) -> Any:
        return call(getattr(wrapper, "worker", wrapper), *args)

    return run


def _empty(core: Any) -> None:
    if core.scheduler.has_requests():
        raise Spent("requests of the last service are still in the engine")
    if not core.scheduler.reset_prefix_cache():
        raise Spent("blocks of the KV cache are still in use")


def _leave(core: Any) -> None:
    from vllm.v1.request import RequestStatus

    core.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    settle(core)
    _empty(core)
    core.collective_rpc(_in_worker(_wipe))


def _wipe(worker: Any) -> None:
    """What the last service's users have said."""
    for layer in worker.vllm_config.compilation_config.static_forward_context.values():
        cache = getattr(layer, "kv_cache", None)
        if cache is not None and hasattr(cache, "zero_"):
            cache.zero_()


def _forget_metrics() -> None:
    """The HTTP metrics of the last application would keep the next one's out; vLLM forgets its own itself."""
    from prometheus_client import REGISTRY

    for collector in {
        c for name, c in list(REGISTRY._names_to_collectors.items()) if name.startswith("http_")
    }:
        with contextlib.suppress(KeyError):
            REGISTRY.unregister(collector)
