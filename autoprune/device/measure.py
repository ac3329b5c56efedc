"""Time ONNX models on this device: one plain script that needs Python 3.8, numpy and onnxruntime.

autoprune imports it to measure its own host, and puts a copy of it into every device kit:

    python measure.py [FOLDER]      # FOLDER holds kit.json, inputs.npz and models/; default: where this script is

Candidates are timed in blocks, interleaved in random order with one reference model (the dense one), and compared with
it by their quiet latency: the 20th percentile of the samples, because disturbances only ever add time. A model that
runs on the calling thread alone is timed by that thread's processor time, which stands still while other work has the
core; everything else by the clock on the wall. A block during which the reference itself moved is measured again.
Results are appended to results.jsonl one line at a time; after an interruption the same command goes on. results.json
is written when everything is done.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence, TextIO

import numpy as np

Run = Callable[[], object]
Clock = Callable[[], float]
Json = Any

_X86 = {"sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}
_AVX512 = {"avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"}
_ARM = {"asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"}
PROFILED_RUNS = 12
_PROFILED_WARMUP = 3
_KERNEL = "_kernel_time"
_worker_cores: list[int] = []


@dataclass(frozen=True)
class Protocol:
    """How long and how often a model is timed.

    One sample is the mean of as many runs as fill `sample_ms`; a model has `repeats` samples, taken in as many rounds
    over its block, in each of which the reference is sampled `reference_samples` times. A block whose reference moves
    more than `max_drift` (relative) is repeated `retries` times at most.
    """

    repeats: int = 20
    reference_samples: int = 4
    sample_ms: float = 1.0
    warmup_runs: int = 5
    block: int = 16
    max_drift: float = 0.03
    retries: int = 2

    def __post_init__(self) -> None:
        least = {"repeats": 2, "reference_samples": 1, "sample_ms": 0, "warmup_runs": 0, "block": 1, "retries": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"a timing protocol has {name} {bound} or more; got {getattr(self, name)}")


@dataclass(frozen=True)
class Block:
    """`samples_ms` [models, rounds] and `reference_ms` [rounds * reference_samples], in order of time.

    `waited` is the share of the wall time that the clock of the samples did not count: other work had the core.
    """

    samples_ms: np.ndarray
    reference_ms: np.ndarray
    repeated: int = 0
    waited: float = 0.0

    @property
    def drift(self) -> float:
        """Relative difference between the reference's two halves of the block."""
        first, second = np.array_split(self.reference_ms, 2)
        return abs(float(quiet(first) / quiet(second)) - 1)

    @property
    def ratios(self) -> np.ndarray:
        """Quiet latency of every model over the reference's: [models]."""
        return quiet(self.samples_ms) / quiet(self.reference_ms)


def quiet(samples_ms: np.ndarray) -> np.ndarray:
    """Latency when nothing disturbs: the 20th percentile over the last axis."""
    return np.percentile(samples_ms, 20, axis=-1)


def clock_of(provider: str, threads: int) -> Clock:
    """Return the clock for models of a provider: the thread's processor time if nothing else works for them.

    Measured on `resnet20` (one thread, 565 us) beside three busy processes on two cores: ratios to the dense model vary
    by 1.2 % (largest 4.5) on the wall and by 0.4 % (0.7) in processor time, as they do on an idle machine
    (`scripts/benchmarks/noise.py`).
    """
    alone = threads == 1 and provider in ("CPUExecutionProvider", "cpu")
    fine = time.get_clock_info("thread_time").resolution < 1e-6 if hasattr(time, "thread_time") else False
    return time.thread_time if alone and fine else time.perf_counter


def measure_block(
    runs: Sequence[Run],
    reference: Run,
    protocol: Protocol,
    rng: np.random.Generator,
    clock: Clock = time.perf_counter,
) -> Block:
    """Time callables until their reference holds still, `retries` more times at most; keeps the stillest attempt."""
    loops = [_loops(run, protocol, clock) for run in runs]
    reference_loops = _loops(reference, protocol, clock)
    attempts: list[Block] = []
    while len(attempts) <= protocol.retries and not (attempts and attempts[-1].drift <= protocol.max_drift):
        counted, wall = clock(), time.perf_counter()
        samples_ms, reference_ms = _rounds(runs, loops, reference, reference_loops, protocol, rng, clock)
        share = (clock() - counted) / (time.perf_counter() - wall)
        attempts.append(Block(samples_ms, reference_ms, len(attempts), min(max(1 - share, 0.0), 1.0)))
    best = min(attempts, key=lambda block: block.drift)
    return Block(best.samples_ms, best.reference_ms, len(attempts) - 1, best.waited)


def _loops(run: Run, protocol: Protocol, clock: Clock) -> int:
    """Warm up, and find how many runs fill one sample."""
    for _ in range(protocol.warmup_runs):
        run()
    fastest = min(_sample(run, 1, clock) for _ in range(3))
    return max(1, int(np.ceil(protocol.sample_ms / max(fastest, 1e-6))))


def _sample(run: Run, loops: int, clock: Clock) -> float:
    """Mean milliseconds of one run; one run before it is not counted, because it finds another model in the caches."""
    run()
    start = clock()
    for _ in range(loops):
        run()
    return (clock() - start) * 1e3 / loops


def _rounds(
    runs: Sequence[Run],
    loops: Sequence[int],
    reference: Run,
    reference_loops: int,
    protocol: Protocol,
    rng: np.random.Generator,
    clock: Clock,
) -> tuple[np.ndarray, np.ndarray]:
    samples = np.empty((len(runs), protocol.repeats))
    reference_ms = []
    for turn in range(protocol.repeats):
        for index in rng.permutation(len(runs) + protocol.reference_samples):
            if index < len(runs):
                samples[index, turn] = _sample(runs[index], loops[index], clock)
            else:
                reference_ms.append(_sample(reference, reference_loops, clock))
    return samples, np.array(reference_ms)


@contextmanager
def pinned(threads: int, one_each: bool = False) -> Iterator[None]:
    """Keep this thread, and those it starts, on `threads` cores: the ones that are fastest right now.

    `one_each`: this thread on the first of them, and every worker of a session of `threads` threads that is opened
    meanwhile on one of the others. Left to itself, the kernel at times wakes a worker on the core of the thread that
    waits for it.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        cores = sorted(before, key=_busyness)[:threads]
        if one_each and 1 < threads == len(cores):
            os.sched_setaffinity(0, {cores[0]})
            _worker_cores.extend(cores[1:])
        else:
            os.sched_setaffinity(0, set(cores))
        yield
    finally:
        _worker_cores.clear()
        os.sched_setaffinity(0, before)


def _busyness(core: int) -> float:
    """Seconds that a fixed piece of work takes on a core, three times over the median: its other work slows it."""
    os.sched_setaffinity(0, {core})
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        sum(range(20_000))
        seconds.append(time.perf_counter() - start)
    return float(np.mean(seconds))


def session_options(threads: int) -> Any:
    """Options with everything pinned that changes a latency: threads, order of execution, spinning, optimisation."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # its errors come as exceptions, too
    # The runtime refuses a number of places that is not the number of its workers.
    if _worker_cores and len(_worker_cores) == threads - 1:
        places = ";".join(str(core + 1) for core in _worker_cores)  # the runtime counts cores from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", places)
    # Spinning workers answer faster, but would steal the cores of the other sessions of a block between their runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def open_session(model: bytes | str, provider: str, options: Any) -> Any:
    """Load a model (bytes or path) on one execution provider; `RuntimeError` when that provider would not run it."""
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        have = ", ".join(ort.get_available_providers())
        raise RuntimeError(f"this onnxruntime {ort.__version__} has no {provider}; it has {have}")
    session = ort.InferenceSession(model, options, providers=[provider])
    if session.get_providers()[0] != provider:
        # The runtime falls back to another provider in silence, and the table would be of the wrong device.
        raise RuntimeError(f"{provider} cannot be used here; onnxruntime fell back to {session.get_providers()[0]}")
    return session


def runner(session: Any, feeds: Sequence[np.ndarray]) -> Run:
    """A callable that runs a session once; inputs are matched by position, because names differ between exports."""
    names = [output.name for output in session.get_outputs()]
    wanted = {entry.name: value for entry, value in zip(session.get_inputs(), feeds)}
    return lambda: session.run(names, wanted)


def kernel_events(
    model: bytes | str, feeds: Sequence[np.ndarray], provider: str, threads: int
) -> tuple[list[str], np.ndarray]:
    """Names [K] of the kernels of a run in the order of execution, and their milliseconds [runs, K]."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(model, provider, options)
        run = runner(session, feeds)
        for _ in range(_PROFILED_WARMUP + PROFILED_RUNS):
            run()
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs: list[list[tuple[str, float]]] = []
    current: list[tuple[str, float]] = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            current.append((event["name"][: -len(_KERNEL)], event["dur"] / 1e3))
        elif event.get("name") == "model_run":
            runs.append(current)
            current = []
    runs = runs[_PROFILED_WARMUP:]
    names = [name for name, _ in runs[0]] if runs else []
    same = [[ms for _, ms in run] for run in runs if [name for name, _ in run] == names]
    return names, np.array(same).reshape(len(same), len(names))


def fingerprint(provider: str, threads: int) -> dict[str, Any]:
    """Return what tells two devices apart: CPU, instruction sets, accelerator, runtime, provider, threads."""
    import onnxruntime as ort

    cpu, isa = host()
    return {
        "provider": provider,
        "threads": threads,
        "runtime": "onnxruntime",
        "runtime_version": ort.__version__,
        "cpu": cpu,
        "isa": list(isa),
        "accelerator": accelerator() if provider not in ("CPUExecutionProvider", "OpenVINOExecutionProvider") else "",
    }


def host() -> tuple[str, tuple[str, ...]]:
    """Name of the CPU and its instruction sets of interest; the latter only where Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    part = " ".join(f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields)
    name = fields.get("model name") or fields.get("CPU part") or platform.machine()
    return f"{name} ({part})" if part else name, tuple(sorted(flags & (_X86 | _AVX512 | _ARM)))


def accelerator() -> str:
    """Name of the first NVIDIA device, or an empty text."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (process.stdout.decode().splitlines() or [""])[0].strip()


def measure_kit(folder: Path) -> Path:
    """Measure what is left of a kit; returns the path of its results."""
    kit = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
    target = fingerprint(kit["provider"], kit["threads"])
    done = _finished(folder / "results.jsonl", kit, target)
    with np.load(str(folder / "inputs.npz"), allow_pickle=False) as stored:
        feeds = [stored[f"input_{i}"] for i in range(len(stored.files))]
    size = kit["protocol"]["block"]
    jobs: list[list[str]] = [kit["timed"][i : i + size] for i in range(0, len(kit["timed"]), size)]
    profiled = len(kit["profiled"])
    with pinned(kit["threads"], one_each=True), (folder / "results.jsonl").open("a", encoding="utf-8") as out:
        reference = _open(folder, kit["reference"], kit, feeds)
        for number, names in enumerate([[name] for name in kit["profiled"]] + jobs):
            if number not in done:
                nodes, start = number < profiled, time.perf_counter()
                measurement = (
                    _nodes(folder, names[0], kit, feeds)
                    if nodes
                    else _block(folder, names, kit, feeds, reference, number)
                )
                done[number] = {"job": number, **measurement, "seconds": round(time.perf_counter() - start, 3)}
                _append(out, done[number])
            print(f"\r{number + 1} of {profiled + len(jobs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    results = {"schema": 1, "kit": kit["kit"], "target": target, "jobs": [done[i] for i in sorted(done)]}
    path, temporary = folder / "results.json", folder / "results.json.tmp"
    temporary.write_text(json.dumps(results), encoding="utf-8")
    temporary.replace(path)
    return path


def _finished(path: Path, kit: Json, target: Json) -> dict[int, Json]:
    """Jobs that an earlier call finished; a torn last line is measured again. Another device is refused."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    head = {"kit": kit["kit"], "target": target}
    if not lines:
        with path.open("w", encoding="utf-8") as out:
            _append(out, head)
    elif lines[0] != head:
        sys.exit(f"{path} was begun by another kit, device or runtime. Delete it to start again, or unpack elsewhere.")
    return {line["job"]: line for line in lines[1:]}


def _append(out: TextIO, value: Json) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()
    os.fsync(out.fileno())


def _open(folder: Path, name: str, kit: Json, feeds: Sequence[np.ndarray]) -> Run:
    session = open_session(str(folder / "models" / name), kit["provider"], session_options(kit["threads"]))
    return runner(session, feeds)


def _nodes(folder: Path, name: str, kit: Json, feeds: Sequence[np.ndarray]) -> Json:
    kernels, ms = kernel_events(str(folder / "models" / name), feeds, kit["provider"], kit["threads"])
    return {"kind": "nodes", "models": [name], "kernels": kernels, "ms": ms.tolist()}


def _block(
    folder: Path, names: Sequence[str], kit: Json, feeds: Sequence[np.ndarray], reference: Run, seed: int
) -> Json:
    runs = [_open(folder, name, kit, feeds) for name in names]
    clock = clock_of(kit["provider"], kit["threads"])
    block = measure_block(runs, reference, Protocol(**kit["protocol"]), np.random.default_rng(seed), clock)
    return {
        "kind": "block",
        "models": list(names),
        "samples_ms": np.round(block.samples_ms, 6).tolist(),
        "reference_ms": np.round(block.reference_ms, 6).tolist(),
        "repeated": block.repeated,
        "waited": round(block.waited, 4),
    }


def main() -> None:
    """Measure the kit in a folder, or print what this device is."""
    parser = argparse.ArgumentParser(description="Time the ONNX models of an autoprune kit; run again to go on.")
    parser.add_argument("folder", nargs="?", type=Path, help="default: the folder of this script")
    parser.add_argument(
        "--fingerprint", nargs=2, metavar=("PROVIDER", "THREADS"), help="only print what this device is"
    )
    given = parser.parse_args()
    if given.fingerprint:
        print(json.dumps(fingerprint(given.fingerprint[0], int(given.fingerprint[1]))))
        return
    path = measure_kit(given.folder or Path(__file__).resolve().parent)
    print(f"done: {path}. Bring it back and run: autoprune profile import {path.name}")


if __name__ == "__main__":
    main()
