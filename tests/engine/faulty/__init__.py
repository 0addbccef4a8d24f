"""The vLLM runtime with faults that tests ask for by environment (FAULT). A runtime for the zygote."""
