"""The stages of the chain, one file each."""
