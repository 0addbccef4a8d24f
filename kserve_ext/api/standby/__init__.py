"""Standby pods as Kubernetes objects: which revisions one fits, how it is made, how it becomes a revision's own."""
