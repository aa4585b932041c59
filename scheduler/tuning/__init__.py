"""Tuning: candidates are measured on this machine within a time budget, and the fastest are chosen."""
