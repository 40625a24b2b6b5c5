"""The commands of `lvd`, by what they are for: a function each, and `COMMANDS`, which `cli` puts into one group."""
