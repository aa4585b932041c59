"""Rules for each family of native kernels: the nodes that it takes, its candidates, and the calls that it lowers them to."""
