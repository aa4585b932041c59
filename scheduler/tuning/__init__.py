"""Measuring candidates on this machine within a time budget, and deciding which is fastest."""
