"""The only wiring: stage after stage, each resumable; and the run that comes out."""

from autoprune.pipeline.main import search
from autoprune.pipeline.run import Candidate, Run

__all__ = ["Candidate", "Run", "search"]
