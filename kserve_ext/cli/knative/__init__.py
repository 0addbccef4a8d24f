"""Takes the place of Knative's activator and autoscaler in a cluster, and gives it back."""
