"""What computes requests: batches, queues, a budget of cores, and the processes that models run in."""
