"""A model's weights: none, for an engine that is started ahead of its service; then a service's, in their place.

On a CPU vLLM packs a layer's weights for the machine and drops them, so there are no parameters to write into. Its
reload gives each layer its parameters back, loads them, packs them and drops them again, layer by layer: no more than
one layer is there twice. That reload only warns of what the files lack; here it is an error, which names it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

from runtimes.vllm_pd.status import StartRefused

#: vLLM's word for how a shaped engine comes to its weights.
NO_WEIGHTS = "galaxy-none"


class WeightsMissing(StartRefused):
    """Parameters that the service's files did not give; the engine holds part of a model."""

    def __init__(self, model: str, names: Iterable[str]) -> None:
        listed = sorted(names)
        some = ", ".join(listed[:5]) + (f" and {len(listed) - 5} others" if len(listed) > 5 else "")
        super().__init__(
            f"{model} lacks the weights of {some}", "--model", "copy the model again, completely"
        )
        self.names = listed


def register() -> None:
    """Makes NO_WEIGHTS known to vLLM. Idempotent."""
    from vllm.model_executor import model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    if NO_WEIGHTS in model_loader._LOAD_FORMAT_TO_MODEL_LOADER:
        return

    @model_loader.register_model_loader(NO_WEIGHTS)
    class NoWeights(BaseModelLoader):  # type: ignore[misc]
        """Zeros. Takes the memory that the weights will have; buffers keep what the model gave them.

        vLLM's own dummy loader draws numbers for buffers as well, scales of the KV cache among them, which no
        service's files would put right.
        """

        def download_model(self, model_config: Any) -> None:
            return

        def load_weights(self, model: Any, model_config: Any) -> None:
            for parameter in model.parameters():
                parameter.data.zero_()


def check_replaceable(worker: Any) -> None:
    """Raises StartRefused for a model whose layers hold more than their weights. Runs in a worker."""
    for name, layer in worker.model_runner.get_model().named_modules():
        kept = [b for b in layer._buffers if b not in layer._non_persistent_buffers_set]
        if kept and any(p is not None for p in layer._parameters.values()):
            error = (
                f"{name} has weights and the state {', '.join(sorted(kept))}, which a second load would lose"
            )
            raise StartRefused(error, "--model", "start this model plainly")


def load(worker: Any, model_config: Any, load_config: Any) -> int:
    """Puts the weights of `model_config`'s files in place of what is there. Runs in a worker, between two steps.

    Returns how many tensors the files had. When it raises, the engine is spent.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.reload.layerwise import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    runner = worker.model_runner
    model = runner.get_model()
    tied = _tied(model)
    files = _Once(model_config.model)
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(model)
        wanted = {name for name, _ in model.named_parameters()}
        weights = get_model_loader(load_config).get_all_weights(model_config, model)
        loaded = model.load_weights(files.each(weights))
        missing = _missing(wanted, loaded, tied) | _incomplete(model, tied)
        if missing:
            raise WeightsMissing(model_config.model, missing)
        finalize_layerwise_reload(model, model_config)
        _pack_tied(model, tied, loaded)
    _as_after_a_start(runner, model_config)
    return len(files.seen)


class _Once:
    """Each tensor of the files once: with two of a name it would be chance which one is used."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.seen: set[str] = set()

    def each(self, weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for name, tensor in weights:
            if name in self.seen:
                raise StartRefused(f"{self._model} has {name} twice", "--model", "keep one set of weights")
            self.seen.add(name)
            yield name, tensor


def _tied(model: Any) -> dict[str, str]:
    """Parameters that are another layer's, too: the name by which files don't have it -> that by which they may."""
    first: dict[int, str] = {}
    again: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            again[name] = known
    return again


def _missing(wanted: set[str], loaded: set[str], tied: dict[str, str]) -> set[str]:
    return {name for name in wanted - loaded if tied.get(name, name) not in loaded}


def _incomplete(model: Any, tied: dict[str, str]) -> set[str]:
    """Parameters of layers of which less was loaded than they hold: of q, k and v in one, say, only two."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.model_executor.model_loader.reload.utils import get_tensor_load_numel

    found = set()
    for prefix, layer in model.named_modules():
        info = get_layerwise_info(layer)
        own = {n: p for n, p in layer._parameters.items() if p is not None}
        names = {f"{prefix}.{name}".lstrip(".") for name in own}
        if not own or not info.can_load() or names <= tied.keys():
            continue
        if info.load_numel < sum(get_tensor_load_numel(p) for p in own.values()) - _padding(layer, own):
            found |= names
    return found


def _padding(layer: Any, parameters: dict[str, Any]) -> int:
    """Elements of rows that are there for a round number of them: no file has these."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    if not isinstance(layer, VocabParallelEmbedding):
        return 0
    rows = layer.shard_indices.num_org_elements
    return sum(p.numel() - p.numel() // p.shape[0] * rows for p in parameters.values())


def _pack_tied(model: Any, tied: dict[str, str], loaded: set[str]) -> None:
    """A layer with another's weights has packed them for itself, before they were loaded."""
    for name in tied.keys() - loaded:
        layer = model.get_submodule(name.rpartition(".")[0])
        quant_method = getattr(layer, "quant_method", None)
        if quant_method is not None:
            quant_method.process_weights_after_loading(layer)


def _as_after_a_start(runner: Any, model_config: Any) -> None:
    """What vLLM does behind the load of a plain start, or what the last service may have left."""
    from vllm.utils.torch_utils import set_random_seed

    runner.reset_lora_state()
    runner.reset_encoder_cache()
    runner.reset_mm_cache()
    set_random_seed(model_config.seed)
    gc.collect(0)
