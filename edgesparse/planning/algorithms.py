"""Algorithms by which a dense layer has fewer multiplications, each with its price: additions, and more weights.

They skip no zero, so what they compete with is the product of what is left after pruning. Whether they pay only a
measurement tells: of the products that they come down to, on the machine that is to run them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgesparse.graph.ops import Conv, Linear, Op
from edgesparse.kernels import Epilogue
from edgesparse.kernels.strassen import PRODUCTS
from edgesparse.kernels.winograd import PLACES
from edgesparse.planning.plan import Plan
from edgesparse.planning.products import Job, job_of
from edgesparse.target import Target


@dataclass(frozen=True)
class Algorithm:
    """One of them.

    Attributes
    ----------
    name:
        As it stands in the name of a layer's kernel.
    share:
        Multiplications that it makes, of those of the layer.
    products:
        Products that it comes down to.
    levels:
        How often Strassen's halves everything.
    from_density:
        Density from which it is worth a measurement.
    margin:
        What is measured of it must take less than this share of the usual way. Of Winograd's that is the products
        alone, without the transforms; in none do more weights come from as far away as in a whole network.
    """

    name: str
    share: float
    products: int
    levels: int
    from_density: float
    margin: float


WINOGRAD = Algorithm("winograd", PLACES / 36, PLACES, 0, 0.3, 0.85)
STRASSEN = tuple(
    Algorithm(name, (PRODUCTS / 8) ** levels, PRODUCTS**levels, levels, 0.7, 0.93)
    for levels, name in ((1, "strassen"), (2, "strassen2"))
)

#: By name.
ALGORITHMS = {algorithm.name: algorithm for algorithm in (WINOGRAD, *STRASSEN)}


def algorithm_of(kernel: str) -> Algorithm | None:
    """The algorithm that stands before the product in a kernel's name."""
    return ALGORITHMS.get(kernel.partition(" ")[0])


def job_name(layer: str, algorithm: str) -> str:
    """What a layer's job by an algorithm is called among all jobs."""
    return f"{layer}/{algorithm}" if algorithm else layer


def split_name(job: str) -> tuple[str, str]:
    """The layer and the algorithm of a job's name; "" for the usual way."""
    layer, _, last = job.rpartition("/")
    return (layer, last) if layer and last in ALGORITHMS else (job, "")


def other_jobs(op: Op, plan: Plan, target: Target, density: float, *, strassen: bool = False) -> dict[str, Job]:
    """The products of a layer by every algorithm that it can have and that is worth a measurement, by name."""
    found = {WINOGRAD.name: _winograd_job(op, plan)} if density >= WINOGRAD.from_density else {}
    for algorithm in STRASSEN if strassen else ():
        if density >= algorithm.from_density:
            found[algorithm.name] = _strassen_job(op, plan, target, algorithm.levels)
    return {name: job for name, job in found.items() if job is not None}


#: Columns below which a row has too few 4x4 pieces to fill a vector.
_LEAST_WIDTH = 8


def _winograd_job(op: Op, plan: Plan) -> Job | None:
    """The 16 products of a layer by Winograd's algorithm, where it is possible: 3x3, stride 1, bands of even size."""
    if not isinstance(op, Conv) or op.kernel != (3, 3) or op.groups != 1:
        return None
    if op.strides != (1, 1) or op.dilations != (1, 1):
        return None
    layout = plan.layouts[op.output]
    if layout.width % 2 or layout.rows % 2 or layout.height % 2 or layout.width < _LEAST_WIDTH:
        return None
    return Job(op.weight[:, :, 4], layout.rows * layout.width // 4, 16 * layout.bands * layout.images, Epilogue())


#: Rows and inputs below which a product is too small to be made of: its additions would take as long.
_LEAST_SIDE = 32


def _strassen_job(op: Op, plan: Plan, target: Target, levels: int) -> Job | None:
    """The 7 or 49 products of a 1x1 convolution or linear layer by Strassen's algorithm.

    Both sides of the matrix must be halved without rest. An odd number of pixels may be left, one in the middle being
    computed twice, but not fewer than a vector has.
    """
    if not isinstance(op, (Conv, Linear)) or op.epilogue.residual == "after":
        return None
    if isinstance(op, Conv) and (not op.pointwise or op.depthwise or op.groups != 1):
        return None
    usual = job_of(op, plan)
    assert usual is not None
    rows, depth = usual.weight.shape
    parts = 1 << levels
    pixels = halved(usual.pixels, levels)
    if rows % parts or depth % parts or min(rows, depth) < parts * _LEAST_SIDE or pixels < target.lanes:
        return None
    weight = usual.weight[: rows // parts, : depth // parts]
    return replace(
        usual, weight=weight, pixels=pixels, bands=usual.bands * PRODUCTS**levels, epilogue=Epilogue(), levels=levels
    )


def halved(pixels: int, levels: int) -> int:
    """Pixels of the parts after so many halvings, each rounded up."""
    return -(-pixels >> levels)


def levels_for(pixels: int, levels: int, least: int) -> int:
    """How often a call of `pixels` is halved, at most `levels` times, so that parts have `least` pixels or more.

    Those are what was measured: a thread's share of a plane has fewer pixels to begin with.
    """
    while levels and halved(pixels, levels) < least:
        levels -= 1
    return levels
