"""What of Ray has no public door: a cluster of our own that keeps to this machine and to this user.

A cluster that is started for one run listens on the loopback address alone, and asks everybody for
a token that is drawn for it and written nowhere. Ray reads the settings for both when it is loaded,
and `fedsim` may be called when it is loaded already; so they are read anew. A test asks a real
cluster whether both are in force, for this is what a new version of Ray may change.
"""

import os
import secrets

from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_CLUSTER = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
"""Whether nodes of other machines may join; if not, Ray listens on the loopback address alone."""

_before: dict[str, str | None] | None = None
"""What these settings were before this module changed them; None if it did not."""


def keep_to_ourselves() -> None:
    """Let the next cluster listen on loopback alone, and ask for a token; before it is started.

    A mode and a token that the user has set stay as they are.
    """
    global _before
    if _before is None:
        _before = {name: os.environ.get(name) for name in (_MODE, _TOKEN, _CLUSTER)}
    os.environ.setdefault(_MODE, "token")
    if not os.environ.get(_TOKEN) and not os.environ.get(_TOKEN_PATH):
        os.environ[_TOKEN] = secrets.token_hex(32)
    os.environ[_CLUSTER] = "0"
    _read_again(cluster=False)


def reach_out() -> None:
    """Undo that, before a cluster of others is joined: it has a token of its own, if any."""
    global _before
    if _before is None:
        return
    for name, value in _before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _before = None
    _read_again(cluster=True)


def _read_again(*, cluster: bool) -> None:
    ray_constants.ENABLE_RAY_CLUSTER = cluster
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")
