"""One rule for each native family: which nodes it takes, its candidates, and the kernel calls that it lowers them to."""
