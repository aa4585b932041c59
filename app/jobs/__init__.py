"""Running queued jobs: the code that agents and the service share, and the service's own worker thread."""
