"""Targets: what a compiled model is for. Presets are a table of data; nothing else knows an architecture's
name.
"""

from __future__ import annotations

import difflib
import functools
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path

from edgesparse.errors import UsageError

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Target:
    """One kind of device, as far as code generation and running need to know it.

    Attributes
    ----------
    name:
        The preset that this target is, or was made from.
    triple, cpu, features:
        LLVM's target triple, `mcpu` and `mattr`.
    lanes:
        float32 values in one vector register.
    registers:
        Number of vector registers.
    l1d, l2:
        Data cache sizes of one core in bytes.
    index:
        Type in which packed weights hold their input channels: "int32", "uint16", or "offset" (premultiplied
        byte offsets as int32).
    packing:
        How weights and activations are best packed: "panel" (copy a `[K][P]` panel into L1) or "plain".
    runner:
        Kind of runner that reaches the device: "local", "ssh", "adb", "qemu", "node", ...
    machine, needs:
        `platform.machine()` and the cpu flags of hosts that run this code natively; `native` chooses by them.
    accumulators:
        Vector registers that may hold sums without spills; 0 for three quarters of all.
    by_lane:
        The machine multiplies a vector by one lane of another, so weights are loaded as vectors.
    pipes, loads:
        Vector multiply-adds and vector loads that a core issues in a cycle.
    apps:
        Android: beside the program, a library without libc is linked, which apps load.
    wide:
        Lanes of two vectors are picked in one instruction, and a vector is about as wide as a row of a small map.
    barrier:
        LLVM's intrinsic, with its numbers, for a no-op that kernels put where LLVM must not mix what comes before and
        after, lest it spills; none where it was not seen to gain.
    few:
        Registers are few, for vectors and for addresses: kernels loop over what they would unroll elsewhere.
    checked:
        The assembly of a kernel's inner loops is read: where they touch the stack, it is made of less (see
        `edgesparse.building.registers`).
    ahead:
        Bytes by which products fetch their weights before they need them; 0 where that was not measured to gain.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    lanes: int
    registers: int
    l1d: int
    l2: int
    index: str
    packing: str
    runner: str
    machine: str
    needs: frozenset[str]
    accumulators: int = 0
    by_lane: bool = False
    pipes: float = 2.0
    loads: float = 2.0
    apps: bool = False
    wide: bool = False
    ahead: int = 0
    barrier: str = ""
    few: bool = False
    checked: bool = False

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `NAME` or `NAME,l1d=BYTES,l2=BYTES`; `native` is found out on this machine.

        Raises UsageError for an unknown name or key, and for a host that no preset fits.
        """
        name, *settings = (part.strip() for part in str(text)[:200].split(","))
        target = native() if name == "native" else _preset(name)
        for setting in settings:
            found = re.fullmatch(r"(l1d|l2)=([1-9]\d{2,9})", setting, re.ASCII)
            if not found:
                raise UsageError(
                    f"target {text!r}", why=f"{setting!r} is not l1d=BYTES or l2=BYTES", fix="e.g. l2=1048576"
                )
            target = target.with_cache(found[1], int(found[2]))
        return target

    def __str__(self) -> str:
        """The text that `parse` reads back to an equal target, on any machine."""
        preset = _BY_NAME[self.name]
        changed = [f"{key}={getattr(self, key)}" for key in ("l1d", "l2") if getattr(self, key) != getattr(preset, key)]
        return ",".join([self.name, *changed])

    def with_cache(self, level: str, size: int) -> Target:
        """The same target with another size in bytes of "l1d" or "l2"."""
        return replace(self, l1d=size) if level == "l1d" else replace(self, l2=size)

    def tvm_target(self) -> dict[str, object]:
        """The dict that `tvm.target.Target` takes."""
        target: dict[str, object] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}
        if self.features:
            target["mattr"] = list(self.features)
        if self.machine == "wasm32":
            target["vector-width"] = 32 * self.lanes  # else TVM sets it, with a warning for every kernel
        return target

    def runs_here(self) -> bool:
        """Whether this machine's processor executes the target's code natively."""
        return self.machine == platform.machine() and self.needs <= host_flags()


_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def _x86(name: str, lanes: int, registers: int, l2: int, needs: frozenset[str], *features: str) -> Target:
    return Target(
        name=name,
        triple="x86_64-linux-gnu",
        cpu=name,
        features=features,
        lanes=lanes,
        registers=registers,
        l1d=32 << 10,
        l2=l2,
        index="offset",
        packing="panel",
        runner="local",
        machine="x86_64",
        needs=needs,
        wide=lanes == 16,
        ahead=4096,
    )


def _wasm(name: str, *features: str) -> Target:
    # Engines keep one or two of the host's 16 registers for themselves, and know no operands in memory.
    return Target(
        name=name,
        triple="wasm32-unknown-unknown",
        cpu="generic",
        features=("+simd128", "+bulk-memory", *features),
        lanes=4,
        registers=16,
        l1d=32 << 10,
        l2=512 << 10,
        index="offset",
        packing="panel",
        runner="node",
        machine="wasm32",
        needs=frozenset(),
        accumulators=8,
    )


_ASIMD = frozenset({"fp", "asimd"})
_V82 = _ASIMD | {"atomics", "asimdrdm", "asimddp", "fphp", "asimdhp", "lrcpc"}
_VFP4 = frozenset({"neon", "vfpv4"})


def _arm64(
    name: str,
    cpu: str = "",
    needs: frozenset[str] = _ASIMD,
    l1d: int = 32 << 10,
    l2: int = 512 << 10,
    pipes: float = 2.0,
    loads: float = 2.0,
    runner: str = "device",
) -> Target:
    return Target(
        name=name,
        triple="aarch64-linux-gnu",
        cpu=cpu or name,
        features=("+neon",),
        lanes=4,
        registers=32,
        l1d=l1d,
        l2=l2,
        index="offset",
        packing="panel",
        runner=runner,
        machine="aarch64",
        needs=needs,
        by_lane=True,
        pipes=pipes,
        loads=loads,
        # A landing pad for no kind of branch: a no-op on every core, and LLVM schedules nothing across it.
        barrier="llvm.aarch64.hint 32",
        checked=True,
    )


def _arm32(name: str, runner: str = "device") -> Target:
    # The A7 is slow at fused multiply-adds only on paper; without these switches LLVM splits every one of them, or each
    # that goes on with another's sum. The last one has it order instructions with an eye on registers. The barrier is a
    # nop: loads keep to their side.
    return Target(
        name=name,
        triple="armv7-unknown-linux-gnueabihf",
        cpu="cortex-a7",
        features=("+neon", "+vfp4", "-slowfpvfmx", "-slowfpvmlx", "-expand-fp-mlx", "-vmlx-hazards", "+use-misched"),
        lanes=4,
        registers=16,
        l1d=32 << 10,
        l2=512 << 10,
        index="offset",
        packing="panel",
        runner=runner,
        machine="armv7l",
        needs=_VFP4,
        accumulators=8,
        by_lane=True,
        pipes=0.5,
        loads=0.5,
        barrier="llvm.arm.hint 0",
        few=True,
        checked=True,
    )


TARGETS: tuple[Target, ...] = (
    _x86("x86-64-v2", 4, 16, 256 << 10, _V2),
    _x86("x86-64-v3", 8, 16, 512 << 10, _V3),
    # LLVM tunes the generic v4 for 256-bit vectors: half of the machine. Ask for all of it.
    _x86("x86-64-v4", 16, 32, 1 << 20, _V4, "-prefer-256-bit"),
    _wasm("wasm-simd"),
    _wasm("wasm-relaxed", "+relaxed-simd"),
    _arm32("armv7"),
    replace(_arm32("android-armv7"), apps=True),
    # The A53 moves 64 bits a cycle from memory; both it and the A55 have one multiply-add of 128 bits a cycle.
    _arm64("cortex-a53", pipes=1.0, loads=0.5),
    _arm64("cortex-a55", needs=_V82, pipes=1.0, loads=1.0, l2=128 << 10),
    _arm64("cortex-a72", l2=1 << 20, pipes=2.0, loads=1.0),
    _arm64("cortex-a76", needs=_V82, l1d=64 << 10),
    _arm64("neoverse-n1", needs=_V82, l1d=64 << 10, l2=1 << 20),
    _arm64("apple-m1", needs=_V82, l1d=128 << 10, l2=3 << 20, pipes=4.0, loads=3.0),
    replace(_arm64("android-arm64", "generic"), apps=True),
    _arm64("aarch64", "generic"),
    # For Python on the ARM machine itself; the others make programs to send to a device.
    _arm64("aarch64-local", "generic", runner="local"),
)
"""All presets, within one machine in rising order: `native` takes the last that the host can run."""

_BY_NAME = {target.name: target for target in TARGETS}


def target_names() -> tuple[str, ...]:
    """The names that `Target.parse` knows."""
    return (*_BY_NAME, "native")


def native() -> Target:
    """The highest preset that this machine runs, with this machine's cache sizes. UsageError if there is
    none.
    """
    able = [target for target in TARGETS if target.runner == "local" and target.runs_here()]
    if not able:
        raise UsageError(
            "no target fits this machine",
            why=f"its processor ({platform.machine()}) runs the code of no preset",
            fix=f"name the target: {', '.join(_BY_NAME)}",
        )
    l1d, l2 = host_caches()
    return replace(able[-1], l1d=l1d or able[-1].l1d, l2=l2 or able[-1].l2)


@functools.cache
def host_flags() -> frozenset[str]:
    """The processor's feature flags as /proc/cpuinfo names them; empty where there is no such file."""
    try:
        text = _CPUINFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


@functools.cache
def host_caches() -> tuple[int, int]:
    """Sizes in bytes of this machine's L1 data and L2 cache, as sysfs tells; 0 for what it does not tell."""
    return host_cache("1"), host_cache("2")


def host_cache(wanted: str) -> int:
    """Bytes of this machine's data cache of level "1", "2" or "3", as sysfs tells; 0 where it does not tell."""
    found = 0
    for folder in sorted(_CACHES.glob("index*")):
        try:
            level, kind, size = (
                (folder / key).read_text(encoding="ascii").strip() for key in ("level", "type", "size")
            )
        except (OSError, UnicodeDecodeError):
            continue
        text = re.fullmatch(r"(\d+)([KM]?)", size)
        if kind in ("Data", "Unified") and level == wanted and text:
            found = int(text[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[text[2]]
    return found


def _preset(name: str) -> Target:
    if name in _BY_NAME:
        return _BY_NAME[name]
    near = difflib.get_close_matches(name, target_names(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"unknown target {name!r}", fix=f"{hint}targets are {', '.join(target_names())}")
