"""Moving digits: the clips and prompts that the demo model is trained on.

A clip shows one of scikit-learn's 8x8 handwritten digits, enlarged and coloured, crossing a black
canvas in one of four directions; its prompt says just that ("red digit seven moving left").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIZE = 48
FRAMES = 13
DIGIT_SIZE = 24
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
COLOURS = {"white": (1.0, 1.0, 1.0), "red": (1.0, 0.2, 0.2), "green": (0.2, 1.0, 0.3), "blue": (0.3, 0.45, 1.0)}
WORDS = ("digit", "moving", *DIGITS, *DIRECTIONS, *COLOURS)
TRAVEL = 20  # pixels crossed between the first and the last frame


@dataclass(frozen=True)
class Clip:
    """One training example: frames as float32 in [-1, 1], shape [3, frames, height, width]."""

    prompt: str
    frames: npt.NDArray[np.float32]


def exemplars(per_digit: int) -> list[list[npt.NDArray[np.float64]]]:
    """The `per_digit` images of each digit that lie nearest to their class mean, in [0, 1]."""
    from skimage.transform import resize
    from sklearn.datasets import load_digits

    data = load_digits()
    images = data.images / 16.0
    chosen: list[list[npt.NDArray[np.float64]]] = []
    for digit in range(10):
        group = images[data.target == digit]
        distance = ((group - group.mean(axis=0)) ** 2).sum(axis=(1, 2))
        nearest = group[np.argsort(distance, kind="stable")[:per_digit]]
        chosen.append([resize(image, (DIGIT_SIZE, DIGIT_SIZE), order=1) for image in nearest])
    return chosen


def prompt_of(digit: int, direction: str, colour: str) -> str:
    """The caption; white, the most common colour, is left unsaid."""
    prefix = "" if colour == "white" else f"{colour} "
    return f"{prefix}digit {DIGITS[digit]} moving {direction}"


def draw(image: npt.NDArray[np.float64], direction: str, colour: str, rng: np.random.Generator) -> Clip:
    """Draw one clip: constant velocity, whole-pixel positions, start and lane jittered by `rng`."""
    dy, dx = DIRECTIONS[direction]
    centre = (SIZE - DIGIT_SIZE) // 2
    middle = np.array([centre, centre]) + rng.integers(-2, 3, size=2)
    frames = np.zeros((3, FRAMES, SIZE, SIZE), dtype=np.float32)
    tint = np.asarray(COLOURS[colour], dtype=np.float32)[:, None, None]
    for index in range(FRAMES):
        along = TRAVEL * (index / (FRAMES - 1) - 0.5)
        y, x = np.rint(middle + along * np.array([dy, dx])).astype(int)
        frames[:, index, y : y + DIGIT_SIZE, x : x + DIGIT_SIZE] = image * tint
    return Clip(prompt="", frames=frames * 2 - 1)


def sample(rng: np.random.Generator, pool: list[list[npt.NDArray[np.float64]]]) -> Clip:
    """One random clip; two in five are white."""
    digit = int(rng.integers(10))
    direction = list(DIRECTIONS)[int(rng.integers(4))]
    colour = list(COLOURS)[int(rng.choice(4, p=(0.4, 0.2, 0.2, 0.2)))]
    image = pool[digit][int(rng.integers(len(pool[digit])))]
    return Clip(prompt_of(digit, direction, colour), draw(image, direction, colour, rng).frames)
