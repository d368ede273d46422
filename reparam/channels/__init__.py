"""The channels of a network's values: which are constants, equal, or read by nobody, and the network made of the rest.
It decides and builds; the pass that uses it is `passes/shrink.py`.
"""

from .family import PAYS
from .halves import is_glu
from .plan import plan_channels
from .rebuild import ChannelPlan, rebuild
from .value import Channels

__all__ = ["PAYS", "ChannelPlan", "Channels", "is_glu", "plan_channels", "rebuild"]
