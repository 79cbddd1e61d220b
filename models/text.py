"""Seeded text and free fonts: what pages and lines are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgesparse.models.packages import PackageFile, require

# Some 500 everyday words; sentences of them are no language, but have its letters, lengths and word shapes.
WORDS = """
a about above across after again against air all almost along also although always among an and animal another
answer any are area around as ask at away back balance bank base be because become been before began being
below best better between big bird black blue board boat body book both box bring brown build built busy but
buy by call came can car care carry case change check children circle city class clear close cloud cold color
come common complete contain correct could country course cover cross cut dark data day decide deep design did
differ direct distance do does dog done door down draw drive dry during each early earth ease east eat edge
end engine enough equal even evening ever every example eye face fact fall family far farm fast father feel
feet few field figure fill final find fire first fish five fly follow food foot for force form found four free
friend from front full game gave general get give glass go gold good got govern great green ground group grow
had half hand happen hard has have he head hear heat heavy help her here high hill him his hold home hope
horse hot hour house how hundred idea if in inch interest is island it its just keep kind king knew know land
language large last late laugh law lay lead learn leave left less let letter level life light like line list
listen little live long look low machine made main make man many map mark may me mean measure men might mile
mind minute miss money month moon more morning most mother mountain move much music must my name nation near
need never new next night no north note nothing notice noun now number object of off office often oil old on
once one only open or order other our out over own page paper part pass pattern people perhaps person picture
piece place plain plan plane plant play point port pose possible power press problem produce product program
pull put question quick quiet rain ran reach read ready real record red remember rest right river road rock
room round rule run said same saw say school science sea second see seem self sentence serve set several shape
she ship short should show side simple since sing size sky sleep slow small snow so some song soon sound south
space special spell stand star start state stay step still stood stop story street strong study such sun sure
surface table tail take talk teach tell ten test than that the their them then there these they thing think
this those though thought thousand three through time to together told too took top toward town travel tree
true try turn two under unit until up upon us use usual vary very voice vowel wait walk want war warm was
watch water way we week weight well went were west what wheel when where which while white who whole why will
wind with wonder wood word work world would write year yellow yes yet you young your
""".split()  # noqa: SIM905 - a list would take a line a word

# Serif and sans, several weights. Caladea is under Apache-2.0, the others under the SIL Open Font License.
_CALADEA = "font_caladea/files/Caladea-{}.ttf"
_LATO = "font_lato/files/Lato-{}.ttf"
FONTS: dict[str, PackageFile] = {
    "caladea": PackageFile("font-caladea", "0.0.2", _CALADEA.format("Regular")),
    "caladea-bold": PackageFile("font-caladea", "0.0.2", _CALADEA.format("Bold")),
    "caladea-italic": PackageFile("font-caladea", "0.0.2", _CALADEA.format("Italic")),
    "lato": PackageFile("font-lato", "0.1.0", _LATO.format("Regular")),
    "lato-bold": PackageFile("font-lato", "0.1.0", _LATO.format("Bold")),
    "hanken": PackageFile("font-hanken-grotesk", "0.0.2", "font_hanken_grotesk/files/HankenGrotesk-Regular.otf"),
    "hanken-semibold": PackageFile(
        "font-hanken-grotesk", "0.0.2", "font_hanken_grotesk/files/HankenGrotesk-SemiBold.otf"
    ),
    "source-sans": PackageFile("font-source-sans-pro", "0.0.1", "font_source_sans_pro/files/SourceSansPro-Regular.ttf"),
    "source-serif": PackageFile(
        "font-source-serif-pro", "0.0.1", "font_source_serif_pro/files/SourceSerifPro-Regular.ttf"
    ),
    "source-serif-semibold": PackageFile(
        "font-source-serif-pro", "0.0.1", "font_source_serif_pro/files/SourceSerifPro-Semibold.ttf"
    ),
}
# What Pillow itself carries: needs no package at all.
BUILTIN_FONT = "builtin"


def font(name: str, size: int) -> Any:
    """Return a Pillow font of `FONTS` (or `BUILTIN_FONT`) at `size` pixels.

    Raises
    ------
    MissingPackageError
        If Pillow or the font's package is not installed.
    """
    require("PIL", "drawing text")
    from PIL import ImageFont

    if name == BUILTIN_FONT:
        return ImageFont.load_default(size)
    # The basic engine draws the same pixels whether or not the system has Raqm.
    return ImageFont.truetype(FONTS[name].locate(), size, layout_engine=ImageFont.Layout.BASIC)


def sentence(rng: np.random.Generator, words: int) -> str:
    """Return that many random words as a sentence; now and then with a number or a comma."""
    parts = [str(word) for word in rng.choice(WORDS, words)]
    for index in range(words):
        draw = rng.random()
        if draw < 0.04:
            parts[index] = str(rng.integers(2, 3000))
        elif draw < 0.12 and index < words - 1:
            parts[index] += ","
    parts[0] = parts[0].capitalize()
    return " ".join(parts) + "."
