"""Pages of text, drawn at will: pictures and labels for the page-orientation network.

A page is laid out in one or two columns with headings, paragraphs and lists in free fonts, then turned by 0,
90, 180 or 270 degrees. *Easy* pages are clean; *hard* ones are skewed, blurred, noisy, unevenly lit and low
in contrast, as phone pictures are. Everything follows from the seed and the page's number, so pages can be
made in any order and any amount; take calibration and evaluation pages from different seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.models.data import Array, Sample
from edgesparse.models.packages import require
from edgesparse.models.text import FONTS, font, sentence

ROTATIONS = (
    0,
    90,
    180,
    270,
)  # degrees clockwise that the page was turned by; the position is the model's class

# ImageNet's statistics, in the order the network's own package applies them: to channels blue, green, red.
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


@dataclass(frozen=True)
class Damage:
    """How badly a page is photographed; each figure is the most, and pages draw up to it.

    Attributes
    ----------
    skew:
        Degrees of rotation either way.
    blur:
        Standard deviation of the blur, pixels.
    noise:
        Standard deviation of the grain, grey levels of 255.
    contrast:
        Share of the contrast that is lost.
    shade:
        Grey levels by which one side is darker than the other.
    """

    skew: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    contrast: float = 0.0
    shade: float = 0.0


EASY = Damage()
HARD = Damage(skew=10.0, blur=1.4, noise=39.0, contrast=0.59, shade=60.0)


def page(rng: np.random.Generator, *, fonts: tuple[str, ...] = tuple(FONTS)) -> Any:
    """Draw an upright page: a grey Pillow image, 480 to 640 pixels wide."""
    require("PIL", "drawing pages")
    from PIL import Image, ImageDraw

    width = int(rng.integers(480, 640))
    height = int(width * rng.uniform(1.2, 1.45))
    paper, ink = int(rng.integers(235, 256)), int(rng.integers(0, 70))
    image = Image.new("L", (width, height), paper)
    draw = ImageDraw.Draw(image)
    size = int(rng.integers(13, 21))
    face = font(str(rng.choice(fonts)), size)
    head = font(str(rng.choice(fonts)), int(size * rng.uniform(1.3, 1.9)))
    margin = int(width * rng.uniform(0.05, 0.1))
    columns = int(rng.integers(1, 3)) if size < 16 else 1
    gap = size
    column_width = (width - 2 * margin - gap * (columns - 1)) // columns
    leading = int(size * rng.uniform(1.15, 1.5))
    for column in range(columns):
        left = margin + column * (column_width + gap)
        top = margin
        while top < height - margin - leading:
            kind = rng.random()
            if kind < 0.2:
                line = _fit(draw, sentence(rng, int(rng.integers(2, 6)))[:-1], head, column_width)
                draw.text((left, top), line, font=head, fill=ink)
                top += int(head.size * 1.5)
                continue
            indent = size if kind < 0.4 else 0
            lines = _wrap(draw, sentence(rng, int(rng.integers(12, 60))), face, column_width - indent)
            for number, line in enumerate(lines):
                if top > height - margin - leading:
                    break
                if indent and number == 0:
                    draw.text((left, top), "-", font=face, fill=ink)
                draw.text((left + indent, top), line, font=face, fill=ink)
                top += leading
            top += leading // 2
    return image


def _fit(draw: Any, text: str, face: Any, width: int) -> str:
    """Return as many leading words of `text` as fit into `width` pixels (at least one)."""
    lines = _wrap(draw, text, face, width)
    return lines[0]


def _wrap(draw: Any, text: str, face: Any, width: int) -> list[str]:
    """Break `text` into lines of at most `width` pixels, at spaces only."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and draw.textlength(longer, font=face) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]


def damaged(image: Any, damage: Damage, rng: np.random.Generator) -> Any:
    """Return the page as a bad photograph of it would look."""
    from PIL import Image, ImageFilter

    angle = rng.uniform(-damage.skew, damage.skew)
    paper = int(np.asarray(image)[0, 0])
    if damage.skew:
        image = image.rotate(angle, resample=Image.Resampling.BICUBIC, expand=False, fillcolor=paper)
    if damage.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(damage.blur / 3, damage.blur)))
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape
    kept = 1 - rng.uniform(damage.contrast / 3, damage.contrast)
    level = rng.uniform(0, 1 - kept)
    pixels = pixels * kept + 255 * level
    slope = rng.normal(size=2)
    ramp = slope[0] * np.linspace(-0.5, 0.5, width)[None] + slope[1] * np.linspace(-0.5, 0.5, height)[:, None]
    pixels = pixels + damage.shade * ramp / (np.abs(slope).sum() + 1e-9)
    pixels = pixels + rng.normal(size=pixels.shape) * rng.uniform(damage.noise / 3, damage.noise)
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def picture(
    index: int, *, seed: int = 0, damage: Damage = EASY, fonts: tuple[str, ...] = tuple(FONTS)
) -> tuple[Any, int]:
    """Return page `index` of a seed as (RGB Pillow image, class); the classes take turns."""
    require("PIL", "drawing pages")
    from PIL import Image

    rng = np.random.default_rng([seed, index])
    label = index % len(ROTATIONS)
    image = damaged(page(rng, fonts=fonts), damage, rng) if damage != EASY else page(rng, fonts=fonts)
    turns = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
    if label:
        image = image.transpose(turns[ROTATIONS[label]])
    return image.convert("RGB"), label


def preprocess(image: Any) -> Array:
    """Return the network's input [1, 3, 224, 224] for an RGB Pillow image, as the network's own package makes
    it.

    Short side to 256 pixels, centre 224x224, scaled to 0..1, mean and deviation of ImageNet, channels blue
    first.
    """
    from PIL import Image

    width, height = image.size
    scale = 256 / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels: NDArray[np.uint8] = np.asarray(image.crop((left, top, left + 224, top + 224)))
    scaled = (pixels[:, :, ::-1].astype(np.float32) / np.float32(255) - _MEAN) / _STD
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def samples(
    count: int, *, seed: int = 0, damage: Damage = EASY, fonts: tuple[str, ...] = tuple(FONTS)
) -> Iterator[Sample]:
    """Yield `count` pages as (input [1, 3, 224, 224], class 0..3), drawing each as it is asked for."""
    for index in range(count):
        image, label = picture(index, seed=seed, damage=damage, fonts=fonts)
        yield preprocess(image), label
