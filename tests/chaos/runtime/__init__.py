"""The instance of chaos runs as a runtime whose instances are forked from a zygote."""
