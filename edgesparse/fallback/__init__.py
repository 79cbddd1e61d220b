"""Lowering of what edgesparse's own kernels do not cover: Relax makes the TIR, this package schedules it."""
