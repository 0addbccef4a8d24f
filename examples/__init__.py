"""Objects to apply, and the demo that applies them (`make demo`)."""
