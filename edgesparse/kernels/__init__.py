"""The kernel families. An instance of a family is a frozen spec: it has a `symbol` (its C name) and `build()`s its TIR.

Families: `Spmm` (sparse and dense products), `Depthwise`, `Pool`, `Panel` (windows), `WinogradIn`, `WinogradOut`,
`StrassenIn`, `StrassenProduct`, `Pointwise`, `GlobalPool`, `Transpose`, `Norm`, `Attention`, `Interleave` (pixels of
several images), `Gates` (recurrences), `Largest` (TopK), `Probe` and `LoadProbe` (the roofline). A spec is all there is
to know of a kernel: equal specs are one kernel, compiled once.
"""

from edgesparse.kernels.attention import Attention
from edgesparse.kernels.depthwise import Depthwise
from edgesparse.kernels.epilogue import Epilogue
from edgesparse.kernels.gather import Panel, Pool
from edgesparse.kernels.interleave import Interleave
from edgesparse.kernels.norm import Norm
from edgesparse.kernels.pointwise import GlobalPool, Pointwise, Transpose
from edgesparse.kernels.probe import LoadProbe, Probe
from edgesparse.kernels.recurrent import Gates
from edgesparse.kernels.spmm import Spmm
from edgesparse.kernels.strassen import StrassenIn, StrassenProduct
from edgesparse.kernels.topk import Largest
from edgesparse.kernels.window import Window
from edgesparse.kernels.winograd import WinogradIn, WinogradOut

KernelSpec = (
    Spmm
    | Depthwise
    | Pool
    | Panel
    | Pointwise
    | GlobalPool
    | Transpose
    | Norm
    | Attention
    | Interleave
    | Gates
    | Largest
    | Probe
    | LoadProbe
    | StrassenIn
    | StrassenProduct
    | WinogradIn
    | WinogradOut
)

__all__ = [
    "Attention",
    "Depthwise",
    "Epilogue",
    "Gates",
    "GlobalPool",
    "Interleave",
    "KernelSpec",
    "Largest",
    "LoadProbe",
    "Norm",
    "Panel",
    "Pointwise",
    "Pool",
    "Probe",
    "Spmm",
    "StrassenIn",
    "StrassenProduct",
    "Transpose",
    "Window",
    "WinogradIn",
    "WinogradOut",
]
