"""Running a graph: what is prepared for one set of input shapes, and the executor that runs it."""
