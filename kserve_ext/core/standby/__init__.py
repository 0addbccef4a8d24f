"""Standby pods: which there should be, which revision each may serve, and how one becomes a revision's own pod."""
