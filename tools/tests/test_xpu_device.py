"""The README's table of what ran on an Intel GPU."""

import xpu_device


def test_the_readme_is_written_from_the_results_file_alone() -> None:
    readme = xpu_device.README.read_text()
    assert xpu_device.page(readme, xpu_device._saved()) == readme


def test_without_results_the_readme_says_not_yet() -> None:
    text = xpu_device.page(f"a\n{xpu_device.START}\nold\n{xpu_device.END}\nb\n", None)
    assert text == f"a\n{xpu_device.START}\n{xpu_device.NOT_YET}\n{xpu_device.END}\nb\n"


def test_results_give_a_line_for_each_model_and_failure() -> None:
    kinds = ("lowered", "float32", "bfloat16")
    ms = dict.fromkeys(kinds, 1.0) | {f"{kind} compiled": 0.5 for kind in kinds}
    model = {"sqnr": 41.0, "ms": ms, "mib": {"lowered": 10.0, "float32": 40.0}}
    results = {
        "torch": "2.14.0+xpu",
        "device": "a GPU",
        "conformance": {"cases": 3, "passed": 2, "failed": {"conv2d, static": "RuntimeError: no kernel"}},
        "models": {"bert, static": model, "vit, static": {"problem": "OutOfMemoryError"}},
    }
    text = xpu_device.table_of(results)
    assert "a GPU, torch 2.14.0+xpu: 2 of 3 conformance cases pass." in text
    assert "| bert, static | 41.0 | 1.00, 0.50 | 1.00, 0.50 | 1.00, 0.50 | 10, 40 |" in text
    assert "| vit, static | failed: OutOfMemoryError | | | | |" in text
    assert "Failed: conv2d, static: RuntimeError: no kernel" in text
