"""Lines of text, drawn at will, and the reading of PP-OCRv4's output: data for the recognition network.

The network gives, for every 8 pixels of a line, a score for each character and for "blank"; the text is the
best character of each step with repeats merged and blanks dropped (CTC). The characters are in the model's
own metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgesparse.errors import ModelError
from edgesparse.models.data import Array, Label, Sample
from edgesparse.models.packages import require
from edgesparse.models.pages import EASY, Damage, damaged
from edgesparse.models.text import FONTS, font, sentence

HEIGHT = 48
WORN = Damage(skew=0.5, blur=0.8, noise=15.0, contrast=0.4, shade=40.0)  # a line from a fair scan


def characters(model: str | Path) -> tuple[str, ...]:
    """Return the network's alphabet from the model's metadata: class 0 is the blank (''), the last one the
    space.

    Raises
    ------
    ModelError
        If the file's metadata has no `character` entry.
    """
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    if "character" not in entries:
        raise ModelError(f"{model} has no list of characters", why="its metadata has no entry 'character'")
    # Split at line feeds alone: splitlines() would also split at, and so lose, characters of the alphabet.
    listed = entries["character"].split("\n")
    return ("", *(listed[:-1] if listed[-1] == "" else listed), " ")


def decoder(alphabet: tuple[str, ...]) -> Callable[[Any], list[Label]]:
    """Return a function from scores [1, steps, characters] to the one text read from them, for `evaluate`."""

    def decode(output: Any) -> list[Label]:
        best = np.asarray(output)[0].argmax(axis=-1)
        kept = [int(now) for before, now in zip([-1, *best[:-1]], best, strict=True) if now != before]
        # The network often sees a space before the first letter; a line's text has none at its ends.
        return ["".join(alphabet[index] for index in kept).strip()]

    return decode


def line(index: int, *, seed: int = 0, damage: Damage = EASY, fonts: tuple[str, ...] = tuple(FONTS)) -> tuple[Any, str]:
    """Return line `index` of a seed as (grey Pillow image, its text): one to four words."""
    require("PIL", "drawing lines of text")
    from PIL import Image, ImageDraw

    rng = np.random.default_rng([seed, index])
    text = sentence(rng, int(rng.integers(2, 5)))
    face = font(str(rng.choice(fonts)), int(rng.integers(28, 36)))
    # Spaced as in a justified column: the network drops narrow spaces, and a miss should be the pruning's
    # fault.
    drawn = text.replace(" ", "  ")
    left, top, right, bottom = face.getbbox(drawn)
    border = int(rng.integers(5, 10))
    size = (int(right - left) + 2 * border, int(bottom - top) + 2 * border)
    image = Image.new("L", size, int(rng.integers(225, 256)))
    ImageDraw.Draw(image).text((border - left, border - top), drawn, font=face, fill=int(rng.integers(0, 80)))
    return (damaged(image, damage, rng) if damage != EASY else image), text


def preprocess(image: Any, *, width: int | None = 320) -> Array:
    """Return the network's input [1, 3, 48, width] for a Pillow image: 48 pixels high, -1..1, zeros on the
    right.

    A line longer than `width` is squeezed into it, as the network's package does; None makes the input as
    wide as the line.
    """
    from PIL import Image

    natural = max(1, round(image.width * HEIGHT / image.height))
    inner = natural if width is None else min(natural, width)
    image = image.convert("RGB").resize((inner, HEIGHT), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.float32)[:, :, ::-1].transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
    whole = np.zeros((1, 3, HEIGHT, width or inner), dtype=np.float32)
    whole[0, :, :, :inner] = pixels
    return whole


def samples(
    count: int,
    *,
    seed: int = 0,
    damage: Damage = EASY,
    fonts: tuple[str, ...] = tuple(FONTS),
    width: int | None = 320,
) -> Iterator[Sample]:
    """Yield `count` lines as (input [1, 3, 48, width], text), drawing each as it is asked for.

    With a fixed width, lines that would have to be squeezed are passed over: all samples are readable.
    """
    index = made = 0
    while made < count:
        image, text = line(index, seed=seed, damage=damage, fonts=fonts)
        index += 1
        if width is not None and image.width * HEIGHT > width * image.height:
            continue
        made += 1
        yield preprocess(image, width=width), text
