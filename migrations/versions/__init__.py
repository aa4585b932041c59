"""Numbered, forward-only, never edited after release."""
