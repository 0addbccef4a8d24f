"""The real runtime's imports."""

from runtimes.vllm_pd.preimport import preimport

__all__ = ["preimport"]
