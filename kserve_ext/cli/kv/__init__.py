"""galaxy kv: what moves KV between instances, by itself."""
