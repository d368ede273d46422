"""How fast models are: by every runtime, in interleaved rounds, with the spread.
Nothing is measured that was not run on this machine.
"""

from .latency import BenchResult, Where, bench
from .runtimes import check_runtimes

__all__ = [
    "BenchResult",
    "Where",
    "bench",
    "check_runtimes",
]
