"""Requests to an object store, tried again while that can help: the one place that does.

Answers are told apart by what they call for: another attempt, the user, or whoever asked.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from lvd.infra.errors import InputError, RetryableError

logger = logging.getLogger("lvd")
T = TypeVar("T")

QUIET_WAIT_S = 1.0  # shorter waits are not worth a line in the log

# What S3 says of a file or an upload; whoever asked knows what to make of it.
ANSWERS = frozenset({"NoSuchKey", "NoSuchUpload", "404", "PreconditionFailed", "412", "InvalidRange", "416"})
# Answers in the 400s that another attempt can change. Source: the S3 API reference, "List of error codes".
PASSING = frozenset(
    {
        "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted",
        "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
        "TooManyRequests", "XAmzContentSHA256Mismatch",
    }
)  # fmt: skip
PASSING_STATUS = frozenset({408, 425, 429})
LASTING_STATUS = frozenset({501, 505})


class Patience(BaseModel, frozen=True, extra="forbid"):
    """How long one request is tried again before the run is told."""

    total_s: float = Field(150, ge=0)  # since the first attempt; the last one may take a time-out longer
    first_wait_s: float = Field(0.2, gt=0)  # doubles from attempt to attempt, each wait cut by up to a half at random
    longest_wait_s: float = Field(10, gt=0)
    connect_timeout_s: float = Field(10, gt=0)
    read_timeout_s: float = Field(60, gt=0)  # a part of PART_BYTES must be on its way within it


PATIENCE = Patience()


class StoreUnavailable(RetryableError, OSError):
    """The server did not do it within the patience: the same command goes on where it was."""


class StoreRefused(InputError, PermissionError):
    """The server says no, or cannot be asked: credentials, permissions, the bucket."""


def patiently(what: str, attempt: Callable[[], T], patience: Patience) -> T:
    """What the attempt gives, tried again after what can pass: 5xx, SlowDown, broken and silent connections.

    what: the file, for the messages. An answer in ANSWERS is raised as it came, at once.
    Raises StoreRefused at once for what another attempt cannot change, StoreUnavailable when the patience is spent.
    """
    from aiohttp import ClientError as BrokenBody
    from botocore.exceptions import BotoCoreError
    from botocore.parsers import ResponseParserError as NoXml  # a gateway's page

    started, tries = time.monotonic(), 0
    while True:
        tries += 1
        try:
            return attempt()
        except (StoreUnavailable, StoreRefused):
            raise
        except (OSError, BotoCoreError, BrokenBody, NoXml) as error:
            if code_of(error) in ANSWERS:
                raise
            if not can_pass(error):
                raise StoreRefused(
                    f"{what} must be allowed by the object store, which said {said(error)}: "
                    "check the bucket, the endpoint, the credentials and their rights"
                ) from error
            spent = time.monotonic() - started
            wait = min(patience.first_wait_s * 2 ** min(tries - 1, 30), patience.longest_wait_s)
            wait *= random.SystemRandom().uniform(0.5, 1)
            if spent + wait >= patience.total_s:
                raise StoreUnavailable(
                    f"{what}: the object store failed {tries} times in {spent:.0f} s, at last with {said(error)}: "
                    "run the same command again, it goes on where it was"
                ) from error
            level = logging.WARNING if wait > QUIET_WAIT_S else logging.DEBUG
            logger.log(level, "%s: the object store said %s, trying again in %.1f s", what, said(error), wait)
        time.sleep(wait)


def answer(error: BaseException) -> dict[str, Any]:
    """The server's answer behind an error; empty if there was none. s3fs chains it to an OSError of its own."""
    for one in (error, error.__cause__):
        if isinstance(found := getattr(one, "response", None), dict):
            return found
    return {}


def code_of(error: BaseException) -> str:
    return str(answer(error).get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    return int(answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def said(error: BaseException) -> str:
    """One line without secrets: status, code and message of the server, or what became of the connection."""
    if found := answer(error).get("Error"):
        text = f"{status_of(error)} {found.get('Code', '')}: {found.get('Message') or 'no more'}"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def can_pass(error: BaseException) -> bool:
    """Whether another attempt of the same request can go better."""
    from botocore import exceptions as boto

    if answer(error):
        status = status_of(error)
        passes = (status >= 500 and status not in LASTING_STATUS) or status in PASSING_STATUS
        return passes or code_of(error) in PASSING
    if isinstance(error, boto.BotoCoreError):
        broken = (
            boto.ConnectionError,  # refused, no such name, timed out before there was one
            boto.HTTPClientError,  # closed, reset, silent
            boto.FlexibleChecksumError,  # other bytes than their checksum
            boto.CredentialRetrievalError,  # the service of the instance role
            boto.MetadataRetrievalError,
        )
        return isinstance(error, broken) and "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return True
