"""The vLLM runtime for a kernel without cpusets, as that of the machine with soft-RoCE. A runtime for the zygote."""
