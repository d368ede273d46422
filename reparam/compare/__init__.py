"""Two models or engines side by side: `verify`, `diff`, and what opens and runs any of them.
Nothing is rewritten here.
"""

from .diffing import diff
from .engines import specs_of
from .opening import Comparable, open_engine, open_model, opened_alike, runnable
from .program_diff import ProgramDiff, diff_calls, read_calls
from .programs import program_of, verify_programs
from .running import run_loaded
from .verdict import Verdict
from .verification import verify

__all__ = [
    "Comparable",
    "ProgramDiff",
    "Verdict",
    "diff",
    "diff_calls",
    "open_engine",
    "open_model",
    "opened_alike",
    "program_of",
    "read_calls",
    "run_loaded",
    "runnable",
    "specs_of",
    "verify",
    "verify_programs",
]
