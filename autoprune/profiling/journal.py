"""The journal of a profile: measurements are appended as they are made, so that an interruption loses one block.

A JSON line for each measurement, after a line with the digest of everything that decides which policies are timed. The
policies of a profile follow from that and from the lines before, so the same profile asks the same questions in the
same order: answers are read from the journal until it ends. What is decided by the time that has passed is a line, too,
because it would be decided otherwise the next time. A last line that was cut off is measured again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from autoprune.device.timing import Kernels, Timings
from autoprune.errors import RunFolderError
from autoprune.files import parsed_json
from autoprune.latencies import LatencySample
from autoprune.records import digest_of

Answer = TypeVar("Answer")

SCHEMA = 2


@dataclass(kw_only=True)
class Journal:
    """Measurements of one profile, in their order.

    `path` is the file (`None`: nothing is kept), `known` are the lines of an interrupted profile that are not answered
    yet. `seconds` is what the answered ones took, by `clock`. `on_note` is told what becomes of a file that was there.
    """

    path: Path | None = None
    known: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    on_note: Callable[[str], None] = lambda text: None
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def open(
        cls,
        path: Path,
        conditions: Mapping[str, Any],
        on_note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> Journal:
        """Go on with the journal at `path`, or begin one.

        Args:
            path: the file.
            conditions: plain JSON value that decides which policies are timed, and on what.
            on_note: called with a line when there is a file at `path`.
            clock: tells the seconds that pass.

        Raises:
            RunFolderError: the file cannot be read or written.
        """
        header = {"schema": SCHEMA, "digest": digest_of(dict(conditions), length=32)}
        journal = cls(path=path, on_note=on_note, clock=clock)
        try:
            lines, whole = _read(path)
            if lines[:1] == [header]:
                os.truncate(path, whole)
                journal.known = lines[1:]
            elif path.exists():
                on_note(f"{path.name} held measurements of another model, space, target or seed, which are discarded")
                path.unlink()
        except OSError as error:
            raise _unwritable(path, error) from error
        if lines[:1] != [header]:
            journal._append(header)
        models = sum(len(line.get("widths", [])) for line in journal.known if line.get("kind") == "times")
        if models:
            on_note(f"goes on after an interruption: {models} models are timed already (from scratch: delete {path})")
        return journal

    def timings(self, stage: str, rows: np.ndarray, measure: Callable[[], Timings]) -> Timings:
        """Return the timings of rows `[P, U + L]`: the known ones, or those that `measure` returns."""
        question = {"kind": "times", "stage": stage, "widths": rows.tolist()}

        def read(answer: Any) -> Timings:
            timings = _timings(answer)
            if len(timings.ratios) != len(rows):
                raise ValueError(f"{len(timings.ratios)} timings of {len(rows)} models")
            return timings

        return self._answer(question, measure, asdict, read)

    def kernels(self, rows: np.ndarray, measure: Callable[[], list[Kernels]]) -> list[Kernels]:
        """Return the kernel times of rows `[P, U + L]`: the known ones, or those that `measure` returns."""
        question = {"kind": "kernels", "widths": rows.tolist()}
        return self._answer(
            question,
            measure,
            lambda kernels: [{"names": list(each.names), "ms": each.ms.tolist()} for each in kernels],
            lambda answer: [Kernels(names=tuple(each["names"]), ms=np.array(each["ms"], float)) for each in answer],
        )

    def cost(self, measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        """Return the seconds of a run and of building a model: the known ones, or those that `measure` returns."""
        return self._answer({"kind": "cost"}, measure, list, lambda answer: (float(answer[0]), float(answer[1])))

    def decided(self, what: str, decide: Callable[[], float]) -> float:
        """Return a number that depends on how long things took: the known one, or that which `decide` returns."""
        return self._answer({"kind": "decision", "of": what}, decide, float, float)

    def _answer(
        self,
        question: dict[str, Any],
        measure: Callable[[], Answer],
        write: Callable[[Answer], Any],
        read: Callable[[Any], Answer],
    ) -> Answer:
        """Answer from the next known line if it is of this question, else measure and append."""
        if self.known:
            line = self.known.pop(0)
            try:
                if {key: line[key] for key in question} == question:
                    answer = read(line["answer"])
                    self.seconds += float(line["seconds"])
                    return answer
            except (KeyError, TypeError, ValueError, IndexError):
                pass
            self._forget([line, *self.known])
        start = self.clock()
        answer = measure()
        self._append(question | {"seconds": self.clock() - start, "answer": write(answer)})
        return answer

    def _forget(self, lines: list[dict[str, Any]]) -> None:
        """Cut off the last lines of the file, which are of other questions."""
        self.known = []
        self.on_note(f"{len(lines)} measurements from before the interruption are of other policies, and are discarded")
        if self.path is not None:
            kept = self.path.read_bytes().splitlines(keepends=True)[: -len(lines)]
            os.truncate(self.path, sum(map(len, kept)))

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as handle:
                handle.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines up to the first that is cut off or damaged, and their bytes."""
    lines, whole = [], 0
    content = path.read_bytes() if path.exists() else b""
    for text in content.splitlines(keepends=True):
        try:
            line = parsed_json(text)
        except ValueError:
            break
        if not (text.endswith(b"\n") and isinstance(line, dict) and isinstance(line.get("widths", []), list)):
            break
        lines.append(line)
        whole += len(text)
    return lines, whole


def _timings(value: Mapping[str, Any]) -> Timings:
    timings = Timings(
        **dict(value)
        | {
            "samples": tuple(LatencySample(**sample) for sample in value["samples"]),
            "ratios": tuple(map(float, value["ratios"])),
            "reference": LatencySample(**value["reference"]),
        }
    )
    times = np.array([*timings.ratios, timings.reference_ms], dtype=float)
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise ValueError("a time must be above 0 and finite")
    return timings


def _unwritable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"{path} cannot be written: {error.strerror or error}. Free some space or choose another folder, and run the "
        "same command again: it goes on with the measurements that are in the file."
    )
