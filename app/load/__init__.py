"""A load generator for servers of the Open Inference Protocol: what it sends, when, and what it finds."""
