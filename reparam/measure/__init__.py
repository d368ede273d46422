"""How good and how fast models are: by accuracy on the user's samples, by every runtime, in interleaved rounds.
Nothing is told that was not measured on this machine.
"""

from .bench import BenchOptions, Judging, bench, bench_entries
from .cards import Told, told_architectures
from .entry import Entry
from .latency import BenchResult, Where, known_shapes, time_models
from .runtimes import check_runtimes
from .table import BenchTable, cells, right_columns, sentences

__all__ = [
    "BenchOptions",
    "BenchResult",
    "BenchTable",
    "Entry",
    "Judging",
    "Told",
    "Where",
    "bench",
    "bench_entries",
    "cells",
    "check_runtimes",
    "known_shapes",
    "right_columns",
    "sentences",
    "time_models",
    "told_architectures",
]
