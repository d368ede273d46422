"""The command line: a thin skin over the Python API."""

from reparam.utils import leave_current_folder

__all__ = ["main"]


def main() -> None:
    """The entry point `reparam`. Nothing that is installed is imported before the search path is what it should be."""
    leave_current_folder()
    from .app import main as run

    run()
