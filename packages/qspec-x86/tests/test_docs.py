"""docs/x86.md is what the table says. Run as a script, this writes it."""

from collections.abc import Iterator
from pathlib import Path

from qspec_core.patterns import Flow, Mode, Row
from qspec_x86 import BACKEND, TABLE, TARGETS

PAGE = Path(__file__).parents[3] / "docs" / "x86.md"

_HEAD = """# x86

What `qspec-x86` runs in integers, and what not and why. This page is written from the backend's table of rows by
`python packages/qspec-x86/tests/test_docs.py`; a test keeps the two equal.
"""

_FLOWS = {
    Flow.STARTS: "starts",
    Flow.JOINS: "joins",
    Flow.SHARES: "shares",
}

_LOWERINGS = {
    "lower_convolution": "`onednn.qconv_pointwise`",
    "lower_linear": "`onednn.qconv_pointwise`, 1x1 over the rows",
    "lower_weight_only": "`aten._weight_int8pack_mm`",
    "lower_max_pool2d": "`quantized.max_pool2d` on uint8",
    "lower_pad": "`aten.constant_pad_nd` with the integer of the value",
    "lower_cat": "`aten.cat` on uint8",
    "lower_view": "itself, on uint8",
}

_NOTES = """## How rows behave

A row that *starts* quantizes its inputs wherever it is found. One that *shares* runs on integers between rows that
start, and its output has the parameters of its input. A result is quantized only for readers that take integers. Every
tail may be a module or a function, in place or not: they are one operator once the graph is in canonical form. Padding
given by the words `same` and `valid` and `aten.convolution` of decomposed graphs are rewritten
likewise.

Tails of convolutions and linears: clamps vanish into saturation where rounding gives the same integers. The kernel of
three dimensions has no post-op, so other clamps behind it are left to the compiler. `add` takes a second operand that
is quantized too, of the same shape and with `alpha=1`, in either order; the result of a convolution added to itself has
no second operand and stays outside. In the eager form the kernel adds; in the compiled ones Inductor joins the sum with
its neighbours, at the same speed and without an operator that mutates.

A float residual behind a linear stays a float sum: quantizing residual streams of transformers cost 5 to 31 dB, and
the kernel's own sum gives wrong numbers for strided operands. A product behind a linear has no post-op in the kernel.

## Modes

- **static**: uint8 activations with ranges from calibration, int8 weights with a scale for each output channel.
- **dynamic**: the range of an activation is found in each call. It is computed in plain operators, since Inductor's own
  form does not widen it to hold 0, and since it must take empty tensors. A depthwise convolution and one over three
  dimensions stay in float, as do pooling, concatenation and all that only moves integers: nothing behind them would
  read the integers. Four hidden layers of a transformer (linears of 768 by 3072 and back, gelu, layer norm), 128 rows,
  one thread, AVX-512 VNNI: 14.9 ms, 13.8 static, 56.4 in float under Inductor.
- **weight only**: int8 weights with bfloat16 activations, for up to 4 rows (one row of 4096 by 4096: 2.6 times as fast
  as bfloat16). In float32 the kernel is slower than float, so such layers are refused with that reason. The kernel
  reads blocks of 16 input features, past the end of others: these are refused too.

Batches and lengths that vary are taken in each mode. Weights are packed for the example's sizes, and reordered in each
call whose sizes need another layout: a linear of 768 by 3072 packed for 128 rows takes 1.4 ms for these, and 3 ms for
one row, where 0.07 ms would do. Export with an example of the usual size, and one program for each where both count.

## Configurations

`get_default_x86_inductor_quantization_config(is_qat, is_dynamic, reduce_range)` has the ranges that users know: uint8
0..255 (0..127 with `reduce_range`), int8 -128..127, scales of 2**-12 and more. Calls with the same arguments return the
same object. Selectors by module name, module type, operator and function decide in this order, the closest first, and a
configuration of None leaves a layer in float. A selector that matches nothing is an error that names the nearest names.
Importing the package changes nothing in Inductor's configuration. Training (`is_qat=True`) raises an error.

## Targets

Without VNNI or AMX, oneDNN sums two products in 16 bits. For target `any` weights get coarser scales in the channels
where two products could leave 16 bits; depthwise convolutions over one and two dimensions sum in 32 bits everywhere and
keep 8 bits. Over three dimensions they do not: the kernel of CPUs with AVX-512 and without VNNI gave 0.52 of the sum.
A package carries its target, and loading one made for VNNI on a CPU without raises an error.

## Not there

- **fp8** in any form: no row, and not measured; the CPUs at hand have no instruction for it.
- **float16 weights of linears**: no row; the CPUs at hand have no float16 arithmetic. bfloat16 models run as they are,
  without quantized activations.
- **int4 weights in groups**: the kernel was 1.2 times as fast as int8 for one row, and slower than bfloat16 from 16
  rows; not annotated yet.
- **Integer products with scales per row** (`_int_mm`): dynamic quantization takes one scale for the tensor instead,
  through a kernel that adds the bias and applies the tail.
- **Several linears of one input joined into one**: they share one quantized input; each has its own call.
- **Embedding tables**: `EmbeddingQuantizer` of qspec_core stores them in 8 or 4 bits; the lookup dequantizes.
- **Scaled dot-product attention and batched products**: stay in float between quantized linears.
- **A quantize lifted above a transpose or reshape**: rows that share have that effect without a pass of its own.
- **Templates tuned by `max_autotune`**: an option of Inductor that applies to the compiled forms as it is.
- **Arm and XPU**: oneDNN's Arm builds and GPUs have backends of their own.
"""


def chains(row: Row) -> str:
    written = [" + ".join(post_op.kernel for post_op in chain) for chain in row.chains if chain]
    return ", ".join(written) or "none"


def entries() -> Iterator[str]:
    yield "| row | operator | tails | meets integers | modes | lowered to |\n|---|---|---|---|---|---|"
    for row in TABLE.rows:
        modes = ", ".join(mode.value for mode in Mode if mode in row.modes)
        lowered = _LOWERINGS[getattr(row.lower, "__name__", "")]
        yield f"| {row.name} | `{row.anchor}` | {chains(row)} | {_FLOWS[row.flow]} | {modes} | {lowered} |"


def float_only() -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for operator, reason in TABLE.float_only.items():
        reasons.setdefault(reason, []).append(f"`{operator}`")
    for reason, operators in reasons.items():
        yield f"- {', '.join(operators)}: {reason}."


def page() -> str:
    modes = ", ".join(mode.value for mode in Mode if mode in BACKEND.modes)
    parts = [
        _HEAD,
        f"Modes: {modes}. Targets: {', '.join(TARGETS)}.\n",
        "## Rows\n",
        "\n".join(entries()) + "\n",
        "## Operators that stay in float\n",
        "\n".join(float_only()) + "\n",
        _NOTES,
    ]
    return "\n".join(parts)


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python packages/qspec-x86/tests/test_docs.py"


def test_every_row_and_reason_is_on_the_page() -> None:
    text = PAGE.read_text()
    assert all(f"| {row.name} |" in text for row in TABLE.rows)
    assert all(str(operator) in text for operator in TABLE.float_only)


if __name__ == "__main__":
    PAGE.write_text(page())
