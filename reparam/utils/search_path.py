"""Where a run of the command line looks for packages: among what is installed, and not in the current folder."""

from __future__ import annotations

import os
import sys


def leave_current_folder() -> None:
    """Takes the current folder off the search path, unless somebody named it there.

    Python looks there first for `python -c`, and so does an empty part of PYTHONPATH (`python -m reparam` is dealt with
    where the package begins): a file `timm.py` beside a checkpoint would then run in place of the package.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        here = ""
    parts = [] if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = here in [os.path.abspath(part) for part in parts if part]
    sys.path[:] = [entry for entry in sys.path if entry != ""]
    if named or not here:
        return
    if not sys.flags.safe_path and sys.path[:1] == [here]:
        del sys.path[0]
    for _ in range(parts.count("") if parts != [""] else 0):  # Python takes each for the current folder
        if here in sys.path:
            sys.path.remove(here)
