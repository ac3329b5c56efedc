"""Memory that this process may use, compared with what is needed before anything is computed.

Where memory ends in the middle, libraries in C abort without a word, or fail in places that name another cause.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from autoprune.errors import UsageError

ADDRESS_SPACE_BYTES = 2 * 10**9
"""Of each process; a search of a net with 7 kB of weights reaches 1.8 GB, most of it libraries that are mapped."""

CONTROLLER_BYTES, WORKER_BYTES = 700 * 10**6, 320 * 10**6
"""Memory that the same search really uses; what processes share is counted once."""

_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Of version 2 and 1, as a container sees its own limit."""


def require_address_space() -> None:
    """Refuse a limit of address space (`ulimit -v`) in which the libraries do not fit.

    Raises:
        UsageError: names the limit, what is needed, and how to raise it.
    """
    limit = address_space_limit()
    if limit is not None and limit < ADDRESS_SPACE_BYTES:
        raise UsageError(
            f"this process may have {limit / 1e9:.1f} GB of address space (`ulimit -v`), and needs "
            f"{ADDRESS_SPACE_BYTES / 1e9:g} GB: PyTorch and ONNX Runtime would end without a message. Raise the limit, "
            "such as with `ulimit -v unlimited`"
        )


def require_memory(workers: int) -> None:
    """Refuse what `require_address_space` refuses, and more worker processes than the memory of a container holds.

    Args:
        workers: processes beside this one.

    Raises:
        UsageError: names the limit, what is needed, and what to do.
    """
    require_address_space()
    limit, needed = container_limit(), CONTROLLER_BYTES + workers * WORKER_BYTES
    if limit is None or needed <= limit:
        return
    fitting = int((limit - CONTROLLER_BYTES) // WORKER_BYTES)
    advice = f"Give it more, or use `--workers {fitting}`" if fitting > 0 else "Give it more"
    if fitting == 0 and workers:
        advice += ", or use `--executor inline`"
    raise UsageError(
        f"this container may use {limit / 1e9:.1f} GB of memory, and a search with {workers} workers needs at least "
        f"{needed / 1e9:.1f} GB. {advice}"
    )


def address_space_limit() -> int | None:
    """Return the bytes of address space that this process may have; `None` without a limit."""
    if sys.platform == "win32":
        return None
    import resource

    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def container_limit(root: Path = _CGROUP) -> int | None:
    """Return the bytes that the control group of this process may use; `None` without a limit."""
    for name in _LIMITS:
        with suppress(OSError, ValueError):  # `max`, where there is none
            limit = int((root / name).read_text())
            return limit if limit < 2**60 else None  # version 1 writes a huge number
    return None
