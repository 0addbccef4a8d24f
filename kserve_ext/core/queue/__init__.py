"""Queue-proxy's duties in a standby pod: how many requests its server gets at once, when it is ready."""
