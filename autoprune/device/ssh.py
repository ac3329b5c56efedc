"""Measuring on another host over the OpenSSH client: a kit is sent, measured, and its results are brought back.

The host needs a Python (3.8 or newer) with numpy and onnxruntime, nothing else. A measurement that breaks off goes on
when the same models are measured again.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.device import measure
from autoprune.device.address import Address
from autoprune.device.kit import KitResults, checked_target, kit_bytes, kit_manifest, parse_results
from autoprune.device.measure import Protocol
from autoprune.device.target import Target
from autoprune.device.timing import Feeds
from autoprune.errors import LatencyError

_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
_FOLDER = ".cache/autoprune/kit-"


def ask_fingerprint(address: Address, provider: str, threads: int) -> Mapping[str, Any]:
    """Ask a host for its fingerprint; `LatencyError` when it cannot be reached or lacks a package."""
    script = Path(measure.__file__).read_bytes()
    command = f"{address.interpreter} - --fingerprint {shlex.quote(provider)} {threads}"
    fingerprint = _parsed(_ssh(address, command, script), address)
    return checked_target(fingerprint, {"provider": provider, "threads": threads}, str(address))


def measure_remotely(
    models: Sequence[bytes],
    target: Target,
    feeds: Feeds,
    *,
    reference: bytes | None = None,
    protocol: Protocol | None = None,
    profile: bool = False,
) -> KitResults:
    """Time `models` beside `reference` on the target's host, or ask the runtime's profiler there.

    Raises `LatencyError` when the host cannot be reached or its measurement fails, `KitError` when what it returns is
    not to be believed.
    """
    address = target.address
    assert address is not None, "a target on this host is not measured remotely"
    everything = range(len(models))
    content = kit_bytes(
        models,
        reference if reference is not None else models[0],
        feeds,
        provider=target.provider,
        threads=target.threads,
        protocol=protocol or Protocol(),
        timed=() if profile else everything,
        profiled=everything if profile else (),
    )
    manifest = kit_manifest(content, "kit")
    folder = _FOLDER + manifest["kit"]
    _ssh(address, f"mkdir -p {folder} && cat > {folder}/kit.zip", content)
    python = address.interpreter
    _ssh(address, f"cd {folder} && {python} -m zipfile -e kit.zip . && {python} measure.py .")
    document = _parsed(_ssh(address, f"cat {folder}/results.json"), address)
    results = parse_results(document, manifest, str(address))
    _same_device(target, results.target)
    _ssh(address, f"rm -r {folder}")
    return results


def _same_device(target: Target, fingerprint: Mapping[str, Any]) -> None:
    wanted = target.fingerprint()
    changed = [
        f"{key}: {wanted[key]!r} before, {fingerprint[key]!r} now"
        for key in fingerprint
        if wanted[key] != fingerprint[key]
    ]
    if changed:
        raise LatencyError(f"{target.address} is another device than before ({'; '.join(changed)})")


def _parsed(answer: bytes, address: Address) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise LatencyError(
            f"{address} did not answer with JSON: {error}. Does its shell print something at login?"
        ) from error


def _ssh(address: Address, command: str, stdin: bytes = b"") -> bytes:
    """Run one command on the host; its standard output."""
    client = ["ssh", *_OPTIONS, *address.ports, "--", address.login, command]
    try:
        done = subprocess.run(client, input=stdin, capture_output=True)
    except FileNotFoundError as error:
        raise LatencyError("a remote target needs the OpenSSH client `ssh`; it is not installed here") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.decode(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise LatencyError(
            f"{address}: {reason}. Check `{address.command}`, and that its Python has numpy and onnxruntime "
            f"(another one: ssh://{address}?python=PATH)."
        )
    return done.stdout
