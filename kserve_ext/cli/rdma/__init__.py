"""galaxy doctor rdma: what a machine has for KV over RDMA, what keeps it from being used, and how fast a link is."""
