"""Tests of `qspec_core.onnx`. They need the extra: without it nothing here is collected."""

import importlib.util

_NEEDED = ("onnxscript", "onnx_ir", "onnxruntime")

collect_ignore_glob = [] if all(map(importlib.util.find_spec, _NEEDED)) else ["test_*.py"]
