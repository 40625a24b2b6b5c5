"""What a hub says when it refuses or is away, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from lvd.infra.errors import InputError, RetryableError


@contextmanager
def answered(repo_id: str) -> Iterator[None]:
    """Raises InputError, in one line, where the hub refuses what is inside, RetryableError where it does not answer."""
    from huggingface_hub.errors import HTTPError  # of the library that it asks with

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # uploads come wrapped in a RuntimeError
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if (told := told_by_hub(cause, repo_id)) is None:
            raise
        raise told from error


def told_by_hub(error: BaseException, repo_id: str) -> InputError | RetryableError | None:
    """What an error of the hub's library says to the user, in one line; None if it is no such error."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, HFValidationError):
        return InputError(f"REPO_ID must be as name/dataset, was {repo_id!r}: {' '.join(str(error).split())}")
    if isinstance(error, LocalTokenNotFoundError):
        return InputError("the hub must know you: set HF_TOKEN, or log in with `hf auth login`")
    if isinstance(error, OfflineModeIsEnabled):
        return InputError("HF_HUB_OFFLINE must not be set for a push, it is: unset it")
    if not isinstance(error, HfHubHTTPError):
        is_away = isinstance(error, (HTTPError, ConnectionError))
        said = f"the hub must answer, was asked in vain ({type(error).__name__}): push again, what it has stays there"
        return RetryableError(said) if is_away else None
    status = error.response.status_code
    said = f"{status} {' '.join((error.server_message or error.response.reason_phrase).split())}"
    if status in (401, 403):
        return InputError(
            f"the hub must let you write {repo_id!r}, it said {said}: set HF_TOKEN to a token that may, "
            "or log in with `hf auth login`"
        )
    if status in (409, 412):
        return RetryableError(f"{repo_id!r} was changed on the hub meanwhile, it said {said}: push again")
    if 400 <= status < 500 and status != 429:
        return InputError(f"the hub must take what is pushed to {repo_id!r}, it said {said}")
    return RetryableError(f"the hub said {said}: push again, what it has stays there")
