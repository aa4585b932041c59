"""Machine code: compiling IR, linking objects, and keeping them on disk."""
