"""Gathers what the report shows."""


def write_report(*_args):
    """Writes report.html."""
