"""A runtime whose zygote keeps a process ready, as one of level S1 keeps an engine; its servers are the tiny ones."""
