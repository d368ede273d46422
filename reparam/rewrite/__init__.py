"""The contract of a rule, and the driver that applies rules to a fixed point.
The driver owns traversal, checks, prices, rollback and remarks; a rule only decides and builds.
"""

from .driver import Driver, Outcome, Phase, Progress, verifying
from .rule import ANY, Match, Pattern, Rewrite, Rule, op

__all__ = [
    "ANY",
    "Driver",
    "Match",
    "Outcome",
    "Pattern",
    "Phase",
    "Progress",
    "Rewrite",
    "Rule",
    "op",
    "verifying",
]
