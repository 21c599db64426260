"""Every method x variant x MLP policy on the demo model, in the precision users get. An hour: `make test-all`."""

from __future__ import annotations

import pytest

from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.methods import METHODS, PROMPT_AWARE, method_class
from structsam_export.methods.mlp import MLPS
from structsam_export.pipeline import export
from structsam_export.schedule import Request
from structsam_export.validate import latency

FORMS = [{"method": name, "variant": variant} for name in METHODS for variant in method_class(name).VARIANTS]
FORMS += [{"method": name, "prompt_aware": True} for name in PROMPT_AWARE]
CASES = [{**form, "mlp": mlp} for form in FORMS for mlp in MLPS] + [{"method": "structsam", "batch": 2}]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_it_passes_its_gates_and_builds(case, tmp_path, monkeypatch):
    """Stated gates of the precision that `auto` chooses; TensorRT-RTX builds the engines."""
    monkeypatch.setattr(latency, "ROUNDS", 1)
    config = ExportConfig(**case, backend="tensorrt-rtx", target="sm89")
    request = Request.of(config)
    try:
        if request.mlp is not None:
            request.mlp.check(method for method, _ in request.methods)
    except UsageError as refused:
        assert "merges tokens" in str(refused)
        return
    report, _ = export(config, tmp_path / "out")
    assert report["passed"], report["parity"]
    low = report["config"]["precision"]
    assert low == ("fp32" if case.get("variant") in method_class(case["method"]).FP32_VARIANTS else "fp16")
    assert len(report["engines"]) == 2
