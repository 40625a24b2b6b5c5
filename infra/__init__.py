"""Storage, settings, errors, safety."""
