"""Initial weights by published methods, found on the captured graph of any model and set in the model's own parameters.
Each method says what it set, to which scale, what it left, and why.
"""

from .initialise import init
from .options import METHODS, REWRITING, USED, WITH_DATA, InitOptions
from .report import Initialised, LeftWeight, SetWeight

__all__ = [
    "METHODS",
    "REWRITING",
    "USED",
    "WITH_DATA",
    "InitOptions",
    "Initialised",
    "LeftWeight",
    "SetWeight",
    "init",
]
