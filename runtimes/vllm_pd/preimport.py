"""Imports what a start would import, so that a zygote can fork a process that only has to load its model.

Imports alone: no torch operation runs and no thread is left here, because neither survives a fork (the zygote looks
for threads). `late_modules` says what a start has still imported since: the list below was made with it,
and a test keeps it short. What is missing in another release of vLLM is skipped: it costs time, not correctness.
"""

from __future__ import annotations

import contextlib
import importlib
import sys

from runtimes.vllm_pd import options

#: Order matters only for the first: vLLM's platform decides what the others import.
MODULES = (
    "vllm.platforms",
    "vllm.entrypoints.launchers.api_server.app_state",
    "vllm.entrypoints.launchers.app",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.model_executor.model_loader.default_loader",
    # what vLLM's factories import on first use
    "compressed_tensors.quantization",
    "fastapi.staticfiles",
    "model_hosting_container_standards.common.custom_code_ref_resolver",
    "model_hosting_container_standards.sagemaker",
    "prometheus_fastapi_instrumentator",
    "pydantic.v1",
    "transformers.file_utils",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.cohere.api_router",
    "vllm.entrypoints.generate.api_router",
    "vllm.entrypoints.generate.generative_scoring.api_router",
    "vllm.entrypoints.generate.structured_decisions.api_router",
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.models.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.scale_out.derender.api_router",
    "vllm.entrypoints.scale_out.factories",
    "vllm.entrypoints.scale_out.render.api_router",
    "vllm.entrypoints.scale_out.token_in_token_out.api_router",
    "vllm.entrypoints.serve.elastic_ep.api_router",
    "vllm.entrypoints.serve.instrumentator.metrics",
    "vllm.entrypoints.serve.instrumentator.offline_docs",
    "vllm.entrypoints.serve.lora.api_router",
    "vllm.entrypoints.serve.profile.api_router",
    "vllm.entrypoints.serve.tokenize.api_router",
    "vllm.entrypoints.serve.utils.fingerprint",
    "vllm.entrypoints.serve.utils.orca_metrics",
    "vllm.entrypoints.serve.utils.sse_keep_alive",
    "vllm.model_executor.layers.fused_moe.eep_reconfigure",
    "vllm.model_executor.layers.fused_moe.oracle.int8",
    "vllm.model_executor.layers.fused_moe.oracle.mxfp8",
    "vllm.model_executor.layers.fused_moe.oracle.nvfp4",
    "vllm.model_executor.layers.quantization.compressed_tensors.utils",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.renderers.hf",
    "vllm.transformers_utils.chat_templates",
    "vllm.triton_utils.dispatcher",
    "vllm.utils.cpu_triton_utils",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.metrics.reader",
    "vllm.v1.pool.flash_maxsim",
    "runtimes.vllm_pd.engine",
    "runtimes.vllm_pd.model_folder",
    "runtimes.vllm_pd.entrance",
    "runtimes.vllm_pd.connector",
    "runtimes.vllm_pd.front",
    "runtimes.vllm_pd.pair",
    "runtimes.vllm_pd.prefill",
    "runtimes.vllm_pd.protocols",
    "runtimes.vllm_pd.refusals",
    "runtimes.vllm_pd.server",
    "runtimes.vllm_pd.worker",
)

#: What the platform's workers are made of, of one platform each.
ON_CPU = ("vllm.v1.worker.cpu_worker", "vllm.v1.attention.backends.cpu_attn")
ON_CUDA = (
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.v1.attention.backends.triton_attn",
    "vllm.device_allocator.cumem",
)

#: Model classes that a zygote holds. Others are imported when a model of theirs is started.
ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

_imported: set[str] = set()


def preimport() -> None:
    """Idempotent; in a forked child it returns at once."""
    if _imported:
        return
    options.apply_environment()
    from vllm.platforms import current_platform

    for name in (*MODULES, *(ON_CPU if current_platform.is_cpu() else ON_CUDA)):
        try:
            importlib.import_module(name)
        except ImportError:
            if name.startswith("runtimes."):
                raise
    options.parser()
    for architecture in ARCHITECTURES:
        register_architecture(architecture)
    _override_kernels()
    _imported.update(sys.modules)


def register_architecture(name: str) -> None:
    """Imports vLLM's class for this architecture here; vLLM would start a process to look at it first."""
    from vllm.model_executor.models.registry import ModelRegistry, _RegisteredModel

    entry = ModelRegistry.models.get(name)
    if entry is not None and not isinstance(entry, _RegisteredModel):
        with contextlib.suppress(Exception):  # vLLM tells why, when it comes to the model
            ModelRegistry.models[name] = _RegisteredModel.from_model_cls(entry.load_model_cls())


def _override_kernels() -> None:
    """The platform's replacements of Triton kernels, once for all forks: vLLM scans every module for them."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        current_platform.register_triton_kernel_overrides()
        type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)


def late_modules() -> list[str]:
    """What has been imported since preimport()."""
    return sorted(set(sys.modules) - _imported)
