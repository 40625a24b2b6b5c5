"""The three classes of errors, by the reaction that they need."""


class InputError(Exception):
    """The user must act: abort, say range, value and remedy in one line, exit with 2."""


class ShardError(Exception):
    """This shard cannot be done: go on with the others and report it."""


class RetryableError(Exception):
    """Trying again can help: a server that was busy, a connection that broke."""
