"""Pure array code: array in, array out."""
