"""Standby pods on the autoscaler's side: the nodes' agents, pools of pods, and how pods become a revision's own."""
