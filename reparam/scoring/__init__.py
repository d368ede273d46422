"""How good outputs are on the user's samples: against labels, and against the outputs of another model.
Everything is added up batch by batch, so that no more than one batch is in memory.
"""

from .agreement import Agreement, Comparison, Difference, UnlikeOutputsError
from .score import Metric, Score, Scorer, decisions, is_scores, scorer_for

__all__ = [
    "Agreement",
    "Comparison",
    "Difference",
    "Metric",
    "Score",
    "Scorer",
    "UnlikeOutputsError",
    "decisions",
    "is_scores",
    "scorer_for",
]
