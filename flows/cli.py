"""`lvd …`: the command line. Exit codes: 0 done; 2 the user must act (one line); 1 a defect.

The commands are in `commands`, a module for each group of `lvd --help`.
"""

import errno
import os
import sys
from types import ModuleType

import typer

from lvd.flows.commands import curating, keeping, looking, publishing, studying
from lvd.flows.server import ServerAway
from lvd.infra.errors import InputError, RetryableError, ShardError
from lvd.infra.logs import last_words

GROUPS: dict[str, ModuleType] = {
    "Curate": curating,
    "Look at it": looking,
    "Versions and takedown": keeping,
    "Publish": publishing,
    "Measure": studying,
}


def main() -> None:
    """Runs a command and turns what goes wrong into an exit code."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")  # of every event that is lost
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "7")  # waits 2, 4, … 128 s, each ± 20 %: at least 200 s
    os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500,504")  # 500: its database is away
    # A worker process that begins during an outage would fail at that check; `server.ask` does it, once.
    os.environ.setdefault("PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        command_line()()
    except ServerAway as error:
        sys.stderr.write(last_words(str(error)))
        sys.stderr.flush()
        os._exit(1)  # else Prefect offers the server every event that is left, some seconds for each
    except InputError as error:
        sys.stderr.write(last_words(str(error)))
        sys.exit(2)
    except (ShardError, RetryableError) as error:
        sys.stderr.write(last_words(str(error)))
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stderr.write(last_words(f"the disk must have room ({error}): make some; the same command goes on"))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(last_words("stopped; the same command goes on where it was"))
        sys.exit(130)


def command_line() -> typer.Typer:
    """All commands, in their groups."""
    app = typer.Typer(
        help="From a web crawl and a few curated image collections to a training set, the way LVD-142M was made.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for group, module in GROUPS.items():
        for command in module.COMMANDS:
            app.command(rich_help_panel=group)(command)
    app.add_typer(studying.study, name="study", rich_help_panel="Measure")
    return app
