"""The hub's client, huggingface_hub: imported when it is needed, quiet when quiet was asked for.

It honours HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from runtime_py.errors import MachineError, UsageError

LIBRARY = "huggingface_hub"
REACH_SECONDS = 5.0
"""How long the hub may take to answer the first question."""

log = logging.getLogger("edgeproof")


def require_client(what: str) -> None:
    """Raise MachineError unless the client is installed.

    Args:
        what: what it is needed for, as the beginning of a sentence.
    """
    try:
        import huggingface_hub  # noqa: F401  # is it there?
    except ImportError as error:
        raise MachineError(
            f"{what}: {LIBRARY} is not installed", "the extra 'hub'", "pip install 'edgeproof[hub]'"
        ) from error


@contextmanager
def as_quiet_as_asked() -> Iterator[None]:
    """Without the client's progress bars and warnings where -q was given."""
    if log.isEnabledFor(logging.WARNING):
        yield
        return
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    client = logging.getLogger(LIBRARY)
    level, had_bars = client.level, not are_progress_bars_disabled()
    client.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            disable_progress_bars()
            yield
    finally:
        client.setLevel(level)
        if had_bars:
            enable_progress_bars()


def licence_not_accepted(repo_id: str) -> UsageError:
    """The error of a repository whose licence this token's account has not accepted."""
    return UsageError(
        f"{repo_id} wants its licence accepted before it is downloaded",
        "a token of an account that accepted it",
        f"accept it at https://huggingface.co/{repo_id}, then set HF_TOKEN",
    )


def network_errors() -> tuple[type[Exception], ...]:
    """What the client raises when the hub, or the way to it, fails; its HTTP library differs between versions."""
    from huggingface_hub import errors

    return (OSError, errors.HfHubHTTPError.__mro__[1])  # type: ignore[return-value]  # the library's own HTTPError


def reason(error: BaseException) -> str:
    """The first line of a failure, for a message."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
