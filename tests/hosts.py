"""What the host of the tests can do."""

from __future__ import annotations

from autoprune.device.measure import host
from autoprune.device.target import adds_in_16_bits
from autoprune.quantization.arithmetic import Arithmetic
from autoprune.quantization.grid import LARGEST_SATURATING_WEIGHT, LARGEST_WEIGHT

OVERFLOWS = adds_in_16_bits({"isa": host()[1]})
"""Whether int8 weights of 8 bits overflow on this CPU (x86 without VNNI), so that a latency table gives them 7 bits."""

ARITHMETIC = Arithmetic(largest_weight=LARGEST_SATURATING_WEIGHT if OVERFLOWS else LARGEST_WEIGHT)
"""The arithmetic of this host."""
