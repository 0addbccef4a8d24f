"""The agent of a node in a Knative cluster: knows its standby pods, and stands between them and autoscalers."""
