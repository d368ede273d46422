"""Files of other formats and what runs them: `export` builds, runs, checks and writes them.
The formats themselves are the modules of `engines.formats`, found by being there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.utils import lazy_doors

if TYPE_CHECKING:
    from .arrays import save_arrays
    from .calibration import read_calibration
    from .data_check import DataCheck, HeldOut, check_metric, check_points, drop_of, judge, task_of
    from .engine_check import EngineCheck, EngineOutputs, as_reals, check_engine, floats
    from .exporting import Exported, ExportOptions, export, export_conversion
    from .format import BuildOptions, Built, Format, Port, Probe, Runnable, Tell
    from .listing import ListedCall
    from .manifest import check_manifest, checked_file, manifest_path, read_manifest, sha256_of
    from .model_card import card_of, fitted, known_preprocessing
    from .on_samples import (
        BATCH,
        Judged,
        OnSamples,
        Runner,
        Task,
        input_specs,
        judge_on_samples,
        names_of_inputs,
        sizes_of_inputs,
    )
    from .openvino import OpenVinoRunnable, convert_onnx
    from .ports import output_names
    from .precision import DTYPES

_DOORS = {
    "arrays": ("save_arrays",),
    "calibration": ("read_calibration",),
    "data_check": (
        "DataCheck",
        "HeldOut",
        "check_metric",
        "check_points",
        "drop_of",
        "judge",
        "task_of",
    ),
    "engine_check": (
        "EngineCheck",
        "EngineOutputs",
        "as_reals",
        "check_engine",
        "floats",
    ),
    "exporting": (
        "ExportOptions",
        "Exported",
        "export",
        "export_conversion",
    ),
    "format": (
        "BuildOptions",
        "Built",
        "Format",
        "Port",
        "Probe",
        "Runnable",
        "Tell",
    ),
    "listing": ("ListedCall",),
    "manifest": (
        "check_manifest",
        "checked_file",
        "manifest_path",
        "read_manifest",
        "sha256_of",
    ),
    "model_card": (
        "card_of",
        "fitted",
        "known_preprocessing",
    ),
    "on_samples": (
        "BATCH",
        "Judged",
        "OnSamples",
        "Runner",
        "Task",
        "input_specs",
        "judge_on_samples",
        "names_of_inputs",
        "sizes_of_inputs",
    ),
    "openvino": (
        "OpenVinoRunnable",
        "convert_onnx",
    ),
    "ports": ("output_names",),
    "precision": ("DTYPES",),
}
__getattr__ = lazy_doors(__name__, _DOORS)

__all__ = [
    "BATCH",
    "DTYPES",
    "BuildOptions",
    "Built",
    "DataCheck",
    "EngineCheck",
    "EngineOutputs",
    "ExportOptions",
    "Exported",
    "Format",
    "HeldOut",
    "Judged",
    "ListedCall",
    "OnSamples",
    "OpenVinoRunnable",
    "Port",
    "Probe",
    "Runnable",
    "Runner",
    "Task",
    "Tell",
    "as_reals",
    "card_of",
    "check_engine",
    "check_manifest",
    "check_metric",
    "check_points",
    "checked_file",
    "convert_onnx",
    "drop_of",
    "export",
    "export_conversion",
    "fitted",
    "floats",
    "input_specs",
    "judge",
    "judge_on_samples",
    "known_preprocessing",
    "manifest_path",
    "names_of_inputs",
    "output_names",
    "read_calibration",
    "read_manifest",
    "save_arrays",
    "sha256_of",
    "sizes_of_inputs",
    "task_of",
]
