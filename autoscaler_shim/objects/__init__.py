"""The embedded stand-in for the API server and KServe's controller: objects, revisions, routes, status."""
