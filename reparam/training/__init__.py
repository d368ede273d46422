"""What training a converted network needs: batch norms put back with measured statistics, statistics measured again.
Training itself is torch's own; `examples/finetune.py` shows it.
"""

from .batch_norms import with_batch_norms
from .batches import open_batches
from .recalibration import NormShift, Recalibrated, recalibrate
from .source import TrainingSource, save_training_source

__all__ = [
    "NormShift",
    "Recalibrated",
    "TrainingSource",
    "open_batches",
    "recalibrate",
    "save_training_source",
    "with_batch_norms",
]
