"""Work on queued jobs: the loop that agents and the service share, and the thread of the service that runs it."""
