"""The operators that networks are made of, as templates.

In a template, {x} and {y} stand for values and {m} for what `build` makes. The other names are drawn, see `Draws`:
{c} is the number of channels, {n} the last size, {rows} the second size but one.
"""

from dataclasses import dataclass

__all__ = ["ACTIVATIONS", "ANYTHING", "FIRST", "LAYERS", "Operator"]


@dataclass(frozen=True)
class Operator:
    """One operator.

    Args:
        name: for reports.
        ranks: numbers of dimensions of {x} that it takes, as digits.
        call: template of the value.
        build: template of what the network holds for it.
    """

    name: str
    ranks: str
    call: str
    build: str = ""


def _layers() -> list[Operator]:
    found = []
    for rank in (1, 2, 3):
        shared = "kernel_size={k}, stride={s}, padding={p}, dilation={d}, groups={g}, bias={flag}"
        more = ", padding_mode={padding_mode}"
        conv, back = f"Conv{rank}d", f"ConvTranspose{rank}d"
        found.append(Operator(conv, str(rank + 2), "{m}({x})", f"nn.{conv}({{c}}, {{gout}}, {shared}{more})"))
        found.append(Operator(conv, str(rank + 2), "{m}({x})", f"nn.{conv}({{c}}, {{out}}, {{k}})"))
        found.append(Operator(back, str(rank + 2), "{m}({x})", f"nn.{back}({{c}}, {{gout}}, {shared})"))
        bn = f"nn.Sequential(nn.{conv}({{c}}, {{out}}, {{k}}, padding={{p}}), nn.BatchNorm{rank}d({{out}}), {{act}})"
        found.append(Operator(f"{conv} block", str(rank + 2), "{m}({x})", bn))
        residual = f"nn.{conv}({{c}}, {{c}}, {{odd}}, padding='same')"
        found.append(Operator(f"{conv} residual", str(rank + 2), "{x} + {m}({x})", residual))
    return found


LAYERS = (
    *_layers(),
    Operator("Linear", "2345", "{m}({x})", "nn.Linear({n}, {out}, bias={flag})"),
    Operator("Linear", "23", "{m}({x})", "nn.Linear({n}, {out}, bias={flag})"),
    Operator("Linear block", "23", "{m}({x})", "nn.Sequential(nn.Linear({n}, {out}), {act})"),
    Operator("Linear residual", "234", "{x} + {m}({x})", "nn.Linear({n}, {n})"),
    Operator("Linear gate", "23", "{m}({x}).sigmoid() * {x}", "nn.Linear({n}, {n})"),
    Operator("weight_norm Linear", "23", "{m}({x})", "nn.utils.parametrizations.weight_norm(nn.Linear({n}, {out}))"),
    Operator("matmul by parameter", "23", "{x} @ {m}", "nn.Parameter(torch.randn({n}, {out}))"),
    Operator("matmul from the left", "34", "{m} @ {x}", "nn.Parameter(torch.randn({out}, {rows}))"),
    Operator("addmm", "2", "torch.addmm({m}[0], {x}, {m})", "nn.Parameter(torch.randn({n}, {out}))"),
    Operator(
        "einsum by parameter", "3", "torch.einsum('bln,no->blo', {x}, {m})", "nn.Parameter(torch.randn({n}, {out}))"
    ),
    Operator("Bilinear", "23", "{m}({x}, {y})", "nn.Bilinear({n}, {n}, {out})"),
    Operator(
        "MultiheadAttention", "3", "{m}({x}, {x}, {x})[0]", "nn.MultiheadAttention({n}, {heads}, batch_first=True)"
    ),
    Operator(
        "MultiheadAttention",
        "3",
        "{m}({x}, {y}, {y}, need_weights=False)[0]",
        "nn.MultiheadAttention({n}, 1, batch_first=True)",
    ),
    Operator(
        "TransformerEncoderLayer", "3", "{m}({x})", "nn.TransformerEncoderLayer({n}, {heads}, {out}, batch_first=True)"
    ),
    Operator("LSTM", "3", "{m}({x})[0]", "nn.LSTM({n}, {out}, batch_first=True, bidirectional={flag})"),
    Operator("GRU", "3", "{m}({x})[0]", "nn.GRU({n}, {out}, batch_first=True, bias={flag})"),
    Operator("RNN", "3", "{m}({x})[0]", "nn.RNN({n}, {out}, batch_first=True)"),
    Operator("LSTMCell", "2", "{m}({x})[0]", "nn.LSTMCell({n}, {out})"),
    Operator("GRUCell", "2", "{m}({x})", "nn.GRUCell({n}, {out})"),
    Operator("conv2d of a computed weight", "4", "F.conv2d({x}, {y}[:1, :, :1, :1])"),
    Operator("linear of a computed weight", "2", "F.linear({x}, {y})"),
    Operator(
        "linear of a sum of parameters",
        "23",
        "F.linear({x}, {m} + {m}.flip(0))",
        "nn.Parameter(torch.randn({out}, {n}))",
    ),
)

ACTIVATIONS = (
    *(
        Operator(name, "12345", "{m}({x})", f"nn.{name}()")
        for name in (
            "ReLU",
            "ReLU6",
            "SiLU",
            "GELU",
            "Hardswish",
            "Hardsigmoid",
            "Sigmoid",
            "Tanh",
            "ELU",
            "SELU",
            "CELU",
        )
    ),
    *(
        Operator(name, "12345", "{m}({x})", f"nn.{name}()")
        for name in (
            "LeakyReLU",
            "Mish",
            "Softplus",
            "LogSigmoid",
            "Softsign",
            "Tanhshrink",
            "Hardshrink",
            "Softshrink",
        )
    ),
    *(
        Operator(name, "12345", "{m}({x})", f"nn.{name}(inplace=True)")
        for name in ("ReLU", "ReLU6", "SiLU", "Hardswish")
    ),
    Operator("PReLU", "2345", "{m}({x})", "nn.PReLU({c})"),
    Operator("PReLU", "2345", "{m}({x})", "nn.PReLU()"),
    Operator("RReLU", "2345", "{m}({x})", "nn.RReLU()"),
    Operator("GELU tanh", "12345", "F.gelu({x}, approximate='tanh')"),
    Operator("Hardtanh", "12345", "F.hardtanh({x}, -{positive}, {positive})"),
    Operator("ELU alpha", "12345", "F.elu({x}, {positive})"),
    Operator("LeakyReLU slope", "12345", "F.leaky_relu({x}, {positive})"),
    Operator("Softplus beta", "12345", "F.softplus({x}, {positive}, {positive})"),
    Operator("clamp", "12345", "{x}.clamp(max={positive})"),
    Operator("clamp", "12345", "{x}.clamp(-{positive}, {positive})"),
    Operator("relu_", "12345", "F.relu_({x})"),
    Operator("tanh_", "12345", "{x}.tanh_()"),
    Operator("leaky_relu_", "12345", "F.leaky_relu_({x}, 0.2)"),
    Operator("GLU", "2345", "F.glu({x}, {dim})"),
    Operator("Softmax", "2345", "F.softmax({x}, {dim})"),
    Operator("LogSoftmax", "2345", "F.log_softmax({x}, {dim})"),
    Operator("Softmin", "2345", "F.softmin({x}, {dim})"),
)

_POOLS = tuple(
    operator
    for rank in (1, 2, 3)
    for operator in (
        Operator(
            f"AvgPool{rank}d", str(rank + 2), f"F.avg_pool{rank}d({{x}}, {{k}}, {{s}}, {{p}}, {{flag}}, {{flag2}})"
        ),
        Operator(
            f"MaxPool{rank}d", str(rank + 2), f"F.max_pool{rank}d({{x}}, {{k}}, {{s}}, {{p}}, ceil_mode={{flag}})"
        ),
        Operator(f"MaxPool{rank}d", str(rank + 2), f"F.max_pool{rank}d({{x}}, {{k}}, {{s}}, 0, {{d}})"),
        Operator(f"AdaptiveAvgPool{rank}d", str(rank + 2), f"F.adaptive_avg_pool{rank}d({{x}}, {{size}})"),
        Operator(f"AdaptiveMaxPool{rank}d", str(rank + 2), f"F.adaptive_max_pool{rank}d({{x}}, {{size}})"),
        Operator(f"BatchNorm{rank}d", str(rank + 2), "{m}({x})", f"nn.BatchNorm{rank}d({{c}})"),
        Operator(f"InstanceNorm{rank}d", str(rank + 2), "{m}({x})", f"nn.InstanceNorm{rank}d({{c}}, affine={{flag}})"),
    )
)

_NORMS = (
    Operator("GroupNorm", "2345", "{m}({x})", "nn.GroupNorm({g}, {c})"),
    Operator("LayerNorm", "2345", "{m}({x})", "nn.LayerNorm({n}, elementwise_affine={flag})"),
    Operator("RMSNorm", "2345", "{m}({x})", "nn.RMSNorm({n})"),
    Operator("LocalResponseNorm", "345", "F.local_response_norm({x}, {k})"),
    Operator("normalize", "2345", "F.normalize({x}, dim={dim})"),
    Operator("Dropout", "2345", "{m}({x})", "nn.Dropout(0.5)"),
    Operator("LPPool2d", "4", "F.lp_pool2d({x}.abs() + 0.1, 2, {k})"),
)

_SHAPES = (
    Operator("flatten", "345", "{x}.flatten(1)"),
    Operator("flatten end", "45", "{x}.flatten(2)"),
    Operator("reshape", "345", "{x}.reshape({x}.shape[0], {c}, -1)"),
    Operator("view", "34", "{x}.contiguous().view({x}.shape[0], -1, {c})"),
    Operator("transpose", "2345", "{x}.transpose({dim}, {dim2})"),
    Operator("permute", "345", "{x}.permute({perm})"),
    Operator("mT", "345", "{x}.mT"),
    Operator("channels_last", "4", "{x}.contiguous(memory_format=torch.channels_last)"),
    Operator("unsqueeze", "234", "{x}.unsqueeze({dim})"),
    Operator("squeeze", "345", "{x}.squeeze({dim})"),
    Operator("expand", "2345", "{x}[:, :1].expand_as({x})"),
    Operator("repeat", "23", "{x}.repeat({repeats})"),
    Operator("repeat_interleave", "234", "{x}.repeat_interleave(2, {dim})"),
    Operator("roll", "2345", "{x}.roll(1, {dim})"),
    Operator("flip", "2345", "{x}.flip({dim})"),
    Operator("slice", "2345", "{x}[:, {start}:]"),
    Operator("slice with a step", "2345", "{x}[..., ::2]"),
    Operator("select", "345", "{x}[:, 0]"),
    Operator("select end", "345", "{x}[..., -1]"),
    Operator("narrow", "2345", "{x}.narrow({dim}, 0, 1)"),
    Operator("index_select", "2345", "{x}.index_select({dim}, torch.tensor([0, 0]))"),
    Operator("index by list", "2345", "{x}[:, [0, -1]]"),
    Operator("gather", "23", "{x}.gather(1, {x}.argsort(1) * 0)"),
    Operator("chunk", "2345", "{x}.chunk(2, {dim})[-1]"),
    Operator("split", "2345", "{x}.split(1, {dim})[0]"),
    Operator("unbind", "345", "{x}.unbind(1)[0]"),
    Operator("cat with a slice of itself", "2345", "torch.cat([{x}, {x}[:, :1]], 1)"),
    Operator("cat", "2345", "torch.cat([{x}, {y}], {dim})"),
    Operator("cat of three", "2345", "torch.cat([{x}, {y}, {x}], {dim})"),
    Operator("stack", "234", "torch.stack([{x}, {y}], {dim})"),
    Operator("hstack", "2345", "torch.hstack([{x}, {y}])"),
    Operator("pad", "2345", "F.pad({x}, ({pad}, {pad2}), value={number})"),
    Operator("pad negative", "2345", "F.pad({x}, (1, -1))"),
    Operator("pad", "345", "F.pad({x}, ({pad}, {pad2}), mode={pad_mode})"),
    Operator("pad 2d", "45", "F.pad({x}, ({pad}, {pad2}, {pad2}, {pad}))"),
    Operator("pad 2d", "4", "F.pad({x}, ({pad}, {pad2}, {pad2}, {pad}), mode={pad_mode})"),
    Operator("PixelShuffle", "4", "F.pixel_shuffle({x}, 2)"),
    Operator("PixelUnshuffle", "4", "F.pixel_unshuffle({x}, 2)"),
    Operator("ChannelShuffle", "4", "F.channel_shuffle({x}, {g})"),
    Operator("Unfold", "4", "F.unfold({x}, {k})"),
    Operator("Upsample", "345", "F.interpolate({x}, scale_factor={factor})"),
    Operator("Upsample linear", "3", "F.interpolate({x}, scale_factor={factor}, mode='linear')"),
    Operator(
        "Upsample bilinear", "4", "F.interpolate({x}, scale_factor={factor}, mode='bilinear', align_corners={flag})"
    ),
    Operator("Upsample bilinear to a size", "4", "F.interpolate({x}, size=({size}, {k}), mode='bilinear')"),
    Operator("Upsample bicubic", "4", "F.interpolate({x}, scale_factor=2, mode='bicubic')"),
    Operator("tril", "2345", "{x}.tril()"),
)

_ARITHMETIC = (
    *(
        Operator(f"{name} of two", "12345", f"{{x}} {sign} {{y}}")
        for name, sign in (("sum", "+"), ("product", "*"), ("difference", "-"))
    ),
    *(
        Operator(f"{name} with a number", "2345", f"{{x}} {sign} {{number}}")
        for name, sign in (("sum", "+"), ("product", "*"), ("quotient", "/"))
    ),
    Operator("number minus", "2345", "1 - {x}"),
    Operator("sum with itself", "2345", "{x} + {x}"),
    Operator("square", "2345", "{x} * {x}"),
    Operator("product with a parameter", "2345", "{x} * {m}", "nn.Parameter(torch.rand({n}))"),
    Operator("sum with a parameter", "345", "{x} + {m}", "nn.Parameter(torch.randn({c}, *[1] * {spatial}))"),
    Operator("quotient", "2345", "{x} / ({y}.abs() + 1)"),
    Operator("squeeze and excite", "45", "{x} * {x}.mean((-1, -2), keepdim=True).sigmoid()"),
    Operator("difference to mean", "2345", "{x} - {x}.mean({dim}, keepdim=True)"),
    Operator("add alpha", "2345", "torch.add({x}, {y}, alpha={number})"),
    Operator("add_", "2345", "{x}.add_({number})"),
    Operator("mul_", "2345", "{x}.mul_({number})"),
    Operator("add_ of two", "2345", "{x}.add_({y})"),
    Operator("write to a slice", "2345", "{x}[:, :1] = {number}; {x} * 1.5"),
    Operator("addcmul", "2345", "torch.addcmul({x}, {x}, {y}, value={number})"),
    Operator("lerp", "2345", "torch.lerp({x}, {y}, 0.3)"),
    Operator("maximum", "2345", "torch.maximum({x}, {y})"),
    Operator("minimum", "2345", "torch.minimum({x}, {y})"),
    Operator("where", "2345", "torch.where({x} > 0, {x}, {y} * 0.0)"),
    Operator("masked_fill", "2345", "{x}.masked_fill({x} < 0, 0.0)"),
    *(
        Operator(name, "2345", f"{{x}}.{name}()")
        for name in ("abs", "neg", "exp", "sin", "cos", "atan", "erf", "square", "expm1")
    ),
    Operator("sqrt", "2345", "({x}.abs() + 0.1).sqrt()"),
    Operator("rsqrt", "2345", "({x}.abs() + 0.1).rsqrt()"),
    Operator("log", "2345", "({x}.abs() + 0.1).log()"),
    Operator("reciprocal", "2345", "({x}.abs() + 0.5).reciprocal()"),
    Operator("pow", "2345", "{x} ** 2"),
    Operator("pow", "2345", "({x}.abs() + 0.1) ** 0.5"),
    Operator("matmul of two", "345", "{x} @ {y}.transpose(-1, -2)"),
    Operator("matmul of two", "234", "{x} @ {y}"),
    Operator("bmm", "3", "torch.bmm({x}, {y}.mT)"),
    Operator("einsum of two", "3", "torch.einsum('bln,bmn->blm', {x}, {y})"),
    Operator("attention", "34", "F.scaled_dot_product_attention({x}, {y}, {y})"),
    Operator("attention causal", "34", "F.scaled_dot_product_attention({x}, {x}, {x}, is_causal=True)"),
    Operator("attention by hand", "34", "({x} @ {y}.transpose(-1, -2) * 0.3).softmax(-1) @ {y}"),
    *(
        Operator(name, "2345", f"{{x}}.{name}({{dim}}, {{flag}})")
        for name in ("mean", "sum", "amax", "amin", "logsumexp")
    ),
    Operator("mean of the picture", "45", "{x}.mean((-1, -2), {flag})"),
    Operator("max", "2345", "{x}.max({dim})[0]"),
    Operator("std", "2345", "{x}.std({dim}, correction=0)"),
    Operator("var", "2345", "{x}.var({dim}, correction=0, keepdim=True)"),
    Operator("norm", "2345", "({x} + 0.1).norm(dim={dim})"),
    Operator("cumsum", "2345", "{x}.cumsum({dim})"),
    Operator("topk", "2345", "{x}.topk(1, {dim})[0]"),
    Operator("sort", "2345", "{x}.sort({dim})[0]"),
    Operator("argmax", "2345", "{x}.argmax({dim})"),
    Operator("cosine_similarity", "2345", "F.cosine_similarity({x} + 0.1, {y} + 0.1, {dim})"),
    Operator("detach and clone", "2345", "{x}.detach().clone()"),
    Operator("to float64 and back", "2345", "{x}.double().to({x}.dtype)"),
    Operator(
        "mean in a buffer",
        "2345",
        "{m}.mul_(0.5).add_({x}.mean(0, keepdim=True)); {x} + {m}",
        "buffer: torch.{initial}(1, {tail})",
    ),
    Operator("counter in a buffer", "2345", "{m}.add_(1); {x} * {m}", "buffer: torch.{initial}(1)"),
    Operator(
        "last value in a buffer",
        "2345",
        "{x} + {m}; {m}.copy_({x}.mean(0, keepdim=True)); {x} - {m}",
        "buffer: torch.{initial}(1, {tail})",
    ),
)

ANYTHING = _POOLS + _NORMS + _SHAPES + _ARITHMETIC

FIRST = (
    Operator("Embedding", "12", "{m}({x})", "nn.Embedding(11, {out}, padding_idx=0)"),
    Operator("Embedding", "12", "{m}({x})", "nn.Embedding(11, {out}, max_norm=None)"),
    Operator("EmbeddingBag", "2", "{m}({x})", "nn.EmbeddingBag(11, {out}, mode='mean')"),
    Operator("one_hot", "12", "F.one_hot({x}, 11) * {m}", "nn.Parameter(torch.ones(11))"),
)
"""Operators that read integers, with which a network of integer inputs begins."""
