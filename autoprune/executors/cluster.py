"""Joining a Ray cluster, as far as it needs no Ray: settings, authentication, room for trials, clear errors."""

from __future__ import annotations

import math
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError, UsageError
from autoprune.temporary import temporary_file

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
"""Environment that Ray and Tune read when they are imported: no usage statistics, no files, the user's own folder."""

_CONNECT_SECONDS = 5.0
_RAY_NAMES = {"cpu": "CPU", "gpu": "GPU"}
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def authenticate(address: str | None) -> None:
    """Say explicitly how this process and its cluster authenticate; a setting of the user stays.

    A cluster of our own gets a token of its own, and one that is joined the token that there is, if there is one.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    given = any(name in os.environ for name in _TOKEN_VARIABLES) or Path("~/.ray/auth_token").expanduser().exists()
    if address is None and not given:
        path = temporary_file("token", secrets.token_hex(32).encode())
        _tokens.append(str(path))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
        given = True
    os.environ["RAY_AUTH_MODE"] = "token" if given else "disabled"


def check_address(address: str | None) -> None:
    """Refuse what is no address, or where nobody listens: Ray itself would try for a minute."""
    if address in (None, "auto"):
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise UsageError(f"the address of a Ray cluster is `auto` or HOST:PORT (such as head:6379); got {address!r}")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS):
            pass
    except OSError as error:
        raise unreachable(address, error) from error


def check_resources(address: str | None, resources: Mapping[str, float] | None, workers: int | None, gpus: int) -> None:
    """Refuse trials that need more CPUs or GPUs than a Ray instance of this host would have.

    It has as many CPUs as its `workers` need if their number is given. What the nodes of a cluster have is known when
    it was joined. `AutopruneError` as in `room`.
    """
    started = getattr(sys.modules.get("ray"), "is_initialized", lambda: False)()  # somebody else's cluster, then
    if address is None and not started:
        asked = {"cpu": 1.0} | dict(resources or {})
        wanted = {name: amount for name, amount in asked.items() if name in _RAY_NAMES and amount > 0}
        if not wanted and any(amount > 0 for amount in asked.values()):
            return  # what this host has of other resources, Ray will tell
        cpus = math.ceil(workers * asked["cpu"]) if workers else os.cpu_count() or 1
        room([{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}}], wanted)


def unreachable(address: str | None, error: BaseException) -> AutopruneError:
    """One message for what Ray says when it cannot be joined."""
    text = " ".join(str(error).split())
    where = f"the Ray cluster at {address}" if address else "a Ray instance on this host"
    if "token" in text.lower() or "auth" in text.lower():
        advice = (
            "Every node and this process need the same RAY_AUTH_MODE, and the same token (RAY_AUTH_TOKEN_PATH) if it "
            f"is `token`; it is {os.environ.get('RAY_AUTH_MODE')!r} here"
        )
    elif "version mismatch" in text.lower():
        advice = "Install the same Python and Ray on every node"
    else:
        advice = "Start one with `ray start --head`, check --ray-address, or use `--executor process`"
    return AutopruneError(f"{where} cannot be used: {text[:300] or type(error).__name__}. {advice}.")


def room(nodes: Sequence[Mapping[str, Any]], wanted: Mapping[str, float]) -> int:
    """How many trials fit the living nodes at the same time; `AutopruneError` when not even one does."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    needed = {_RAY_NAMES.get(name, name): amount for name, amount in wanted.items() if amount > 0}
    if not needed:
        raise AutopruneError(f"a trial needs some of a resource; got {dict(wanted)}. Raise --resources, such as cpu=1.")
    fits = [min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in needed.items()) for node in alive]
    if not sum(fits):
        has = "; ".join(", ".join(f"{name}={node.get(name, 0):g}" for name in needed) for node in alive)
        asked = ", ".join(f"{name}={amount:g}" for name, amount in wanted.items())
        raise AutopruneError(f"no node has room for a trial of {asked}; the nodes have: {has}. Lower --resources.")
    return sum(fits)


@contextmanager
def ending_with_us(leftovers: Sequence[str] = ()) -> Iterator[None]:
    """Mark all processes that are started in a `with` block; what is left of them is ended a moment after this process.

    Ray's agents stay for minutes after a `kill -9` of their driver. Another process, which is there before they are,
    looks for the mark in their environment. It also removes the token of `authenticate` and the folders `leftovers`,
    if they are still there.
    """
    mark = secrets.token_hex(16)
    _start_reaper(mark, leftovers)
    os.environ[_MARK] = mark
    try:
        yield
    finally:
        del os.environ[_MARK]


def _start_reaper(mark: str, leftovers: Sequence[str]) -> None:
    read, write = os.pipe()
    nowhere = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", _REAPER, f"{_MARK}={mark}", *_tokens, *leftovers],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, read, 0), nowhere, (os.POSIX_SPAWN_DUP2, 1, 2)],
        setsid=True,
    )
    os.close(read)
    _pipes.append(write)  # stays open as long as this process lives; nothing it starts inherits it


_pipes: list[int] = []
_tokens: list[str] = []
_MARK = "AUTOPRUNE_RAY"
_REAPER = """
import contextlib, os, pathlib, shutil, signal, sys, time
sys.stdin.read()
time.sleep(3)
quiet = 0
for _ in range(60):
    quiet += 1
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if sys.argv[1].encode() in path.read_bytes().split(bytes(1)):
                os.kill(int(path.parent.name), signal.SIGKILL)
                quiet = 0
    if quiet == 3:
        break
    time.sleep(1)
for path in map(pathlib.Path, sys.argv[2:]):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
"""
