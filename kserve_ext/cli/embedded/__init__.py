"""The embedded cluster: its data folder, its processes, and the supervisor that keeps them running."""
