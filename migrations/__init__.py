"""Alembic migrations of the strategy database: numbered, forward-only, never edited after release."""
