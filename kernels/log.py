"""What the engine has to say while it goes on working; errors are raised."""

from __future__ import annotations


def warn(event: str, **facts: object) -> None:
    """Log a warning with its facts. structlog is loaded when there is one: with what it brings it takes 12 MB."""
    import structlog  # noqa: PLC0415

    structlog.get_logger("edgewise.engine").warning(event, **facts)
