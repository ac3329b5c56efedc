"""Measuring on another host over the OpenSSH client: a kit is sent, measured, and its results are brought back.

The host needs a Python (3.8 or newer) with numpy and onnxruntime, nothing else. A measurement that breaks off goes on
when the same models are measured again.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.config_file import shortened
from autoprune.device import measure
from autoprune.device.address import Address
from autoprune.device.bounded import run_bounded
from autoprune.device.kit import KitResults, checked_target, kit_bytes, kit_manifest, parse_results
from autoprune.device.measure import Protocol
from autoprune.device.target import Target
from autoprune.device.timing import Feeds
from autoprune.errors import LatencyError

_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
_MOST_BYTES = 256 * 2**20
_ANSWER_SECONDS, _MEASURING_SECONDS = 300.0, 24 * 3_600.0
"""A host that answers does so in seconds; a measurement, or a kit over a slow line, may take hours."""

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
    _ssh(address, f"mkdir -p {folder} && cat > {folder}/kit.zip", content, _MEASURING_SECONDS)
    python = address.interpreter
    _ssh(
        address, f"cd {folder} && {python} -m zipfile -e kit.zip . && {python} measure.py .", most_s=_MEASURING_SECONDS
    )
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


def _ssh(address: Address, command: str, stdin: bytes = b"", most_s: float = _ANSWER_SECONDS) -> bytes:
    """Run one command on the host; its standard output, of which there may be no more than that of a kit."""
    client = ["ssh", *_OPTIONS, *address.ports, "--", address.login, command]
    try:
        code, output, errors = run_bounded(client, stdin, most_bytes=_MOST_BYTES, most_s=most_s)
    except FileNotFoundError as error:
        raise LatencyError("a remote target needs the OpenSSH client `ssh`; it is not installed here") from error
    except TimeoutError as error:
        raise LatencyError(f"{address} did not answer: {error}. Check `{address.command}`.") from error
    if code != 0:
        lines = [line for line in errors.decode(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
        reason = shortened(lines[-1]) if lines else f"exit code {code}"
        raise LatencyError(
            f"{address}: {reason}. Check `{address.command}`, and that its Python has numpy and onnxruntime "
            f"(another one: ssh://{address}?python=PATH)."
        )
    return output
