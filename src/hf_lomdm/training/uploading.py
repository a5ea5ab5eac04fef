"""What is said when an upload to the Hub fails."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HTTPError  # of httpx or httpx2, whichever the Hub's client uses

REFUSALS = (401, 403, 404)  # the Hub answers 404 to a token that may not know what is there


@contextmanager
def explained_upload(failure: str) -> Iterator[None]:
    """Turns errors of the Hub's client into one that says what holds now and what to do.

    Args:
        failure: what holds if it fails, such as `"outputs/owt is written, but was not uploaded to
            org/name"`.
    Raises:
        ConnectionError: the Hub refused (it needs another token or name) or the connection broke
            (try again).
    """
    try:
        yield
    except HTTPError as error:
        response = getattr(error, "response", None)
        refused = response is not None and response.status_code in REFUSALS
        remedy = (
            "Log in with a token that may write there (hf auth login, or HF_TOKEN)"
            if refused
            else "Try again"
        )
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ConnectionError(
            f"{failure}: {reason}. {remedy}: the same call completes it."
        ) from error
