"""The user's own samples: images, arrays and archives read a batch at a time.
They are split by hash into samples that choices are made on and held-out ones that figures are taken from.
"""

from .arrays import load_array
from .files import FOLDERS, class_folders, folder_classes, holds_arrays
from .grouping import Group, grouped
from .labels import Apart
from .peek import first_sample
from .preprocessing import Preprocessing, config_mapping, read_config
from .samples import EVERY, Sample, Samples, held_out, open_samples
from .spool import Deck, Spooled, spool

__all__ = [
    "EVERY",
    "FOLDERS",
    "Apart",
    "Deck",
    "Group",
    "Preprocessing",
    "Sample",
    "Samples",
    "Spooled",
    "class_folders",
    "config_mapping",
    "first_sample",
    "folder_classes",
    "grouped",
    "held_out",
    "holds_arrays",
    "load_array",
    "open_samples",
    "read_config",
    "spool",
]
