"""The KV cache of this engine as bytes: block by block, one buffer a layer, without copies.

A block is opaque (its inside depends on the attention backend); equal layouts on both sides (layout.py) are what
makes it portable. Never touches torch beyond reading a tensor's address.
"""

from __future__ import annotations

from typing import Any


class KvMemory:
    """Set once, when the engine has allocated its cache."""

    def __init__(self) -> None:
        self._layers: list[memoryview] = []
        self.block_bytes = 0
        self.blocks = 0

    @property
    def layers(self) -> int:
        return len(self._layers)

    def register(self, tensors: dict[str, Any]) -> None:
        """`tensors`: the paged cache of each layer; the first dimension counts blocks."""
        import torch

        views, blocks = [], 0
        for name in sorted(tensors):
            tensor = tensors[name]
            if tensor.device.type != "cpu" or not tensor.is_contiguous():
                raise ValueError(f"{name}: only contiguous KV caches in host memory can be transferred")
            views.append(memoryview(tensor.view(-1).view(torch.uint8).numpy()))
            blocks = tensor.shape[0]
        self.register_views(views, blocks)

    def register_views(self, layers: list[memoryview], blocks: int) -> None:
        if len({len(layer) for layer in layers}) != 1:
            raise ValueError("the layers' KV caches differ in size: this model's KV can't be transferred")
        self.block_bytes = len(layers[0]) // blocks
        self.blocks = blocks
        self._layers = layers

    def view(self, layer: int, first: int, blocks: int) -> memoryview:
        if not (0 <= layer < len(self._layers) and first >= 0 and first + blocks <= self.blocks):
            raise ValueError(f"no blocks {first}+{blocks} in layer {layer}")
        return self._layers[layer][first * self.block_bytes : (first + blocks) * self.block_bytes]
