"""The real runtime's imports."""

from runtimes.vllm_pd.preimport import assert_forkable, preimport

__all__ = ["assert_forkable", "preimport"]
