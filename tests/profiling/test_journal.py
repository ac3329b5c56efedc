"""Profiles that are interrupted go on from their journal; the journal of another profile is discarded."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from autoprune.device.address import Address
from autoprune.device.timing import Kernels
from autoprune.errors import RunFolderError
from autoprune.profiling.journal import Journal
from autoprune.profiling.profile import open_journal, profile
from tests.machines import AdditiveMachine, SimulatedTimer, simulated_timer, stairs

KERNELS = Kernels(names=("conv", "add"), ms=np.array([[0.125, 0.5], [0.25, 0.5]]))


class Killed(BaseException):
    """The process ends in the middle of a measurement."""


@dataclass(frozen=True, kw_only=True)
class MortalTimer(SimulatedTimer):
    """Is killed at one of its measurements, and keeps the number of rows of each."""

    dies_at: int = 10**9
    rows: list[int] = field(default_factory=list)

    def time(self, widths, stage, protocol):
        if len(self.rows) == self.dies_at:
            raise Killed
        self.rows.append(len(widths))
        return super().time(widths, stage, protocol)

    def kernels(self, widths):
        return [KERNELS for _ in widths]


@pytest.fixture
def profiled(structure_of, space_of, target, tmp_path):
    """Profile a net on a machine without noise, until the timer's death."""
    notes, path = [], tmp_path / "t.samples.jsonl"

    def run(name="residual", *, dies_at=10**9, seed=3, at=target, levels=None, samples=path, model_s=0.0, **options):
        structure = structure_of(name)
        machine = AdditiveMachine(structure, stairs(4))
        machine.model_s = model_s
        timer = MortalTimer(**vars(simulated_timer(machine, at, seed=seed)), dies_at=dies_at)
        space = space_of(name) if levels is None else space_of(name, levels)
        about = {"seed": seed, "narrowed": False, "on_note": notes.append}
        journal = None if samples is None else open_journal(samples, structure, space, timer, **about)
        try:
            table = profile(
                structure, space, at, seed=seed, timer=timer, journal=journal, on_note=notes.append, **options
            )
            return table, timer.rows
        except Killed:
            return None, timer.rows

    run.notes, run.path = notes, path
    return run


def test_an_interrupted_profile_loses_one_block(profiled):
    whole, rows = profiled(samples=None)
    _, before = profiled(dies_at=6)
    assert profiled.notes == []
    table, after = profiled()
    assert before + after == rows
    assert max(rows) == 16
    timed = sum(before[1:])
    assert profiled.notes == [
        f"goes on after an interruption: {timed} models are timed already (from scratch: delete {profiled.path})"
    ]
    assert table.entries == whole.entries
    assert table.samples == whole.samples
    assert table.again_ms == whole.again_ms


def test_a_profile_may_be_interrupted_often(profiled):
    whole, rows = profiled(samples=None)
    table, done, lives = None, [], 0
    while table is None:
        table, timed = profiled(dies_at=3)
        done += timed
        lives += 1
    assert lives > 3
    assert done == rows
    assert table.samples == whole.samples


@pytest.mark.parametrize(("before_s", "after_s"), [(0.02, 10.0), (10.0, 0.02)])
def test_however_fast_the_host_is_later_what_was_decided_by_time_stays(profiled, before_s, after_s):
    whole, rows = profiled(samples=None, model_s=before_s, max_seconds=30.0)
    profiled(dies_at=len(rows) - 1, model_s=before_s, max_seconds=30.0)
    table, after = profiled(model_s=after_s, max_seconds=30.0)
    assert after == rows[-1:]
    assert table.samples == whole.samples
    assert table.entries == whole.entries


def test_a_shorter_limit_of_time_ends_the_rounds_that_are_left(profiled):
    _, rows = profiled(samples=None, model_s=0.02, max_seconds=30.0)
    profiled(dies_at=8, model_s=0.02, max_seconds=30.0)
    _, after = profiled(model_s=0.02, max_seconds=1.0)
    assert 8 + len(after) < len(rows)
    assert not any("discarded" in note for note in profiled.notes)


def test_a_line_that_was_cut_off_is_measured_again(profiled):
    profiled(dies_at=6)
    content = profiled.path.read_bytes()
    profiled.path.write_bytes(content[:-20])
    whole, rows = profiled(samples=None)
    table, after = profiled()
    assert len(after) == len(rows) - 5
    assert table.samples == whole.samples


@pytest.mark.parametrize("damage", [b"\x00\xff\n", b"[]\n", b'{"kind":"times"}\n', b'{"kind":"cost","answer":0}\n'])
def test_measurements_behind_a_damaged_line_are_made_again(profiled, damage):
    profiled(dies_at=6)
    lines = profiled.path.read_bytes().splitlines(keepends=True)
    profiled.path.write_bytes(b"".join([*lines[:4], damage, *lines[4:]]))
    whole, _ = profiled(samples=None)
    table, _ = profiled()
    assert table.samples == whole.samples


def test_impossible_times_are_measured_again(profiled):
    profiled(dies_at=6)
    last = profiled.path.read_text().splitlines()[-1]
    profiled.path.write_text(profiled.path.read_text().replace(last, last.replace('"ratios":[', '"ratios":[-1e9,')))
    whole, _ = profiled(samples=None)
    assert profiled()[0].samples == whole.samples


@pytest.mark.parametrize("change", ["seed", "target", "space", "model"])
def test_measurements_of_another_profile_are_discarded(profiled, target, change):
    profiled(dies_at=6)
    changes = {
        "seed": {"seed": 4},
        "target": {"at": replace(target, threads=target.threads + 1)},
        "space": {"levels": 4},
        "model": {"name": "flat"},
    }
    options = changes[change]
    _, rows = profiled(samples=None, **options)
    _, after = profiled(**options)
    assert after == rows
    assert profiled.notes == [
        "t.samples.jsonl held measurements of another model, space, target or seed, which are discarded"
    ]


def test_time_before_an_interruption_counts(profiled):
    profiled(dies_at=12)
    lines = profiled.path.read_text().splitlines()
    slow = [line.replace('"seconds":', '"seconds":100') for line in lines]
    profiled.path.write_text("\n".join(slow) + "\n")
    table, _ = profiled()
    assert table.seconds > 1000


def test_progress_counts_all_models_of_a_stage(profiled, structure_of, space_of, target):
    profiled(dies_at=6)
    told = []
    structure = structure_of("residual")
    machine, space = AdditiveMachine(structure, stairs(4)), space_of("residual")
    timer = simulated_timer(machine, target, on_progress=lambda *args: told.append(args), seed=3)
    journal = open_journal(profiled.path, structure, space, timer, seed=3, narrowed=False, on_note=print)
    profile(structure, space, target, seed=3, timer=timer, journal=journal)
    assert ("timing held-out policies", 40, 40) in told


def test_models_for_another_host_are_sent_together(profiled, target):
    _, rows = profiled(at=replace(target, address=Address(login="me@board")))
    assert max(rows) >= 40


def test_a_journal_that_cannot_be_written_is_a_clear_error(profiled, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        profiled(samples=tmp_path / "file" / "t.samples.jsonl")


def test_kernels_are_kept(tmp_path):
    widths = np.array([[3, 4], [5, 6]])
    first = Journal.open(tmp_path / "j", {}, print)
    first.kernels(widths, lambda: [KERNELS, KERNELS])
    again = Journal.open(tmp_path / "j", {}, print).kernels(widths, list)
    assert [each.names for each in again] == [KERNELS.names] * 2
    np.testing.assert_array_equal(again[1].ms, KERNELS.ms)
