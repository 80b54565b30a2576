"""Train a small network on handwritten digits, quantize it after training and with training, and compare.

    python examples/qat_digits.py [--seeds 5] [--plot losses.svg]

Float training, then int8 and 4-bit weights, each after training alone and with quantization-aware
training. Takes under two minutes. Needs qspec-x86 and scikit-learn.
"""

import argparse
import copy
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from qspec_core import QATSchedule, convert_pt2e, prepare_pt2e, quantize_aware
from qspec_x86 import BACKEND, X86InductorQuantizer, get_default_x86_inductor_quantization_config

FLOAT_EPOCHS, TRAINING_EPOCHS, BATCH = 20, 6, 64


class Digits(NamedTuple):
    """Images in 0..1, (count, 1, 8, 8), and labels."""

    images: Tensor
    labels: Tensor


def digits() -> tuple[Digits, Digits]:
    """Two thirds of scikit-learn's digits to train with, one third to test with."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def network(seed: int) -> nn.Sequential:
    """Three convolutions with batch norms, and a linear layer: small enough that 4 bits hurt."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(144, 10)),
    )


def batches(data: Digits, seed: int) -> Iterator[Digits]:
    """The training data in a new order, in batches of one size."""
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(seed))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        yield Digits(data.images[chosen], data.labels[chosen])


def progress(text: str, done: int, total: int) -> None:
    """Draw a progress bar, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r{text:<28} [{'#' * (20 * done // total):<20}]", end="\n" if done == total else "", file=sys.stderr)


def fit(
    module: nn.Module, data: Digits, *, epochs: int, rate: float, text: str, schedule: QATSchedule | None = None
) -> list[float]:
    """Train for some epochs, and return the loss of each."""
    optimizer = torch.optim.Adam(module.parameters(), rate)
    losses = []
    for epoch in range(epochs):
        total = 0.0
        for batch in batches(data, epoch):
            loss = nn.functional.cross_entropy(module(batch.images), batch.labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item()
            if schedule is not None:
                schedule.step()
        losses.append(total / (len(data.labels) // BATCH))
        progress(text, epoch + 1, epochs)
    return losses


def accuracy(module: nn.Module, data: Digits) -> float:
    """Percentage of images that a module names correctly, one batch at a time."""
    with torch.no_grad():
        right = sum(
            (module(images).argmax(1) == labels).sum().item()
            for images, labels in zip(torch.split(data.images, BATCH), torch.split(data.labels, BATCH), strict=True)
        )
    return float(100 * right / len(data.labels))


def after_training(net: nn.Module, train: Digits, bits: int) -> nn.Module:
    """Quantize a trained network without more training."""
    config = get_default_x86_inductor_quantization_config(weight_bits=bits)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    graph = torch.export.export(net.eval(), (train.images[:BATCH],), dynamic_shapes=shapes).module()
    prepared = prepare_pt2e(graph, X86InductorQuantizer().set_global(config))
    for batch in batches(train, 0):
        prepared(batch.images)
    return convert_pt2e(prepared)


def with_training(net: nn.Module, train: Digits, bits: int) -> tuple[nn.Module, list[float]]:
    """Quantize a trained network with a few more epochs, in which it sees the rounding."""
    config = get_default_x86_inductor_quantization_config(is_qat=True, weight_bits=bits)
    training = quantize_aware(
        copy.deepcopy(net),
        (train.images[:BATCH],),
        backend=BACKEND,
        quantizer=X86InductorQuantizer().set_global(config),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    steps = TRAINING_EPOCHS * (len(train.labels) // BATCH)
    schedule = QATSchedule(training.module, freeze_batch_norms_at=steps // 2, freeze_observers_at=3 * steps // 4)
    text = f"{bits}-bit weights, training"
    losses = fit(training.module, train, epochs=TRAINING_EPOCHS, rate=0.003, text=text, schedule=schedule)
    return training.finish().converted, losses


def plot(path: str, losses: dict[str, list[float]]) -> None:
    """Draw the loss of each epoch, on a logarithmic scale, as an SVG file."""
    width, height, colors = 480, 300, ("black", "steelblue", "firebrick")
    logs = {name: [math.log10(value) for value in values] for name, values in losses.items()}
    low, high = (limit(value for values in logs.values() for value in values) for limit in (min, max))
    longest = max(map(len, logs.values()))
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    for index, (name, values) in enumerate(logs.items()):
        places = (
            (40 + epoch * (width - 60) / (longest - 1), 20 + (high - value) / (high - low) * (height - 60))
            for epoch, value in enumerate(values)
        )
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colors[index]}" stroke-width="2"/>')
        lines.append(f'<text x="{width - 170}" y="{30 + 18 * index}" fill="{colors[index]}">{name}</text>')
    lines.append(f'<text x="40" y="{height - 12}">epochs 1 to {longest}; loss 1e{high:.1f} to 1e{low:.1f}</text></svg>')
    Path(path).write_text("\n".join(lines), encoding="utf-8")
    print(f"losses: {path}")


def main() -> None:
    """Run all seeds, and print the mean accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", help="SVG file for a plot of the losses")
    options = parser.parse_args()
    train, test = digits()
    found: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        net = network(seed)
        losses["float"] = fit(net.train(), train, epochs=FLOAT_EPOCHS, rate=0.01, text=f"float, seed {seed}")
        found.setdefault("float", []).append(accuracy(net.eval(), test))
        for bits in (8, 4):
            found.setdefault(f"{bits}-bit weights, after training", []).append(
                accuracy(after_training(net, train, bits), test)
            )
            trained, losses[f"{bits}-bit weights"] = with_training(net, train, bits)
            found.setdefault(f"{bits}-bit weights, with training", []).append(accuracy(trained, test))
    print(f"{'accuracy on ' + str(len(test.labels)) + ' images, in %':<36} mean of {options.seeds} seeds")
    for name, values in found.items():
        print(f"{name:<36} {sum(values) / len(values):.2f}")
    if options.plot:
        plot(options.plot, losses)


if __name__ == "__main__":
    main()
