"""Evidence that two computations are the same: of one rewrite on its own region, and of a whole network.
Everything is compared in float64 against a bound that comes from the arithmetic, then once more in the emitted dtype.
"""

from .blame import unasked_batch_is_to_blame
from .claim_check import Claim, Slot, check_claims
from .emitted_check import check_emitted, check_runs, not_finite_in
from .evidence import FileEvidence, NetworkEvidence
from .exactness import DISTURBED, LostDigitsError, disturbed
from .few_integers import with_few_integers
from .file_check import check_file
from .input_plan import sizes_of_one
from .judge import Judge
from .network_check import agree_in_float64, check_float64
from .output_error import ErrorSums, OutputError
from .path_error import PathError
from .region import Region, find_region, whole_region
from .rewrite_check import Evidence, check_region
from .rounds import Round, all_samples_alike, depth_limit
from .sums_in_order import IN_ORDER
from .values import refuse_broken_weights

__all__ = [
    "DISTURBED",
    "IN_ORDER",
    "Claim",
    "ErrorSums",
    "Evidence",
    "FileEvidence",
    "Judge",
    "LostDigitsError",
    "NetworkEvidence",
    "OutputError",
    "PathError",
    "Region",
    "Round",
    "Slot",
    "agree_in_float64",
    "all_samples_alike",
    "check_claims",
    "check_emitted",
    "check_file",
    "check_float64",
    "check_region",
    "check_runs",
    "depth_limit",
    "disturbed",
    "find_region",
    "not_finite_in",
    "refuse_broken_weights",
    "sizes_of_one",
    "unasked_batch_is_to_blame",
    "whole_region",
    "with_few_integers",
]
