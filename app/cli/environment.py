"""The service's settings as a command sees them: environment variables, and the command line on top."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from app.cli.console import ArgumentError
from app.settings import Settings


def read_settings(**given: Any) -> Settings:
    """Read the environment's settings, with those given in place of theirs. Raises ArgumentError naming the variable."""
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        variable = "_".join(["EDGEWISE", *(str(part).upper() for part in first["loc"][:1])])
        raise ArgumentError(f"{variable}: {str(first['input'])!r} is refused: {first['msg']}") from None
