"""Curation flows: the recipe, the chain, the command line."""
