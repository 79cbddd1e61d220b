"""Strong changes of photographs, the loss by norms, and the memory that training keeps."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from edgesparse.training import inputs
from edgesparse.training.features import feature_loss
from edgesparse.training.inputs import BLENDED, COLOUR, PATCHED


def test_pictures_are_blended_or_get_one_rectangle_of_another() -> None:
    count = 4000
    own = torch.arange(count, dtype=torch.float32)
    made = inputs._mixed(own.reshape(-1, 1, 1, 1).expand(-1, 3, 6, 9).clone(), torch.Generator().manual_seed(0))
    assert torch.equal(made, made[:, :1].expand(-1, 3, -1, -1)), "channels go together"
    patched = blended = 0
    for value, picture in zip(own, made[:, 0], strict=True):
        other = picture != value
        foreign = picture[other].unique()
        assert len(foreign) <= 1, "of one other picture"
        if other.all():  # a blend of two, or a patch that hides everything
            blended += 1
        elif other.any():
            patched += 1
            assert float(foreign) == int(foreign), "a patch is of the other picture itself"
            rows, columns = other.any(1).nonzero()[:, 0], other.any(0).nonzero()[:, 0]
            assert other[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert int(other.sum()) == int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))
    assert blended / count == pytest.approx(BLENDED, abs=0.06)
    assert 0.1 < patched / count <= PATCHED + 0.03  # the smallest patches lie between the pixels


def test_colours_change_by_one_rule_for_all_pixels_of_a_picture() -> None:
    before = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 3, 5, 7)).astype(np.float32))
    after = inputs._coloured(before, torch.Generator().manual_seed(1))
    for old, new in zip(before.numpy(), after.numpy(), strict=True):
        for channel in range(3):
            known = np.stack([old[channel].ravel(), old.mean(0).ravel(), np.ones(35)], 1)
            factors, rest, *_ = np.linalg.lstsq(known, new[channel].ravel(), rcond=None)
            assert float(rest[0]) < 1e-8
            assert 0.8 * (1 - COLOUR) <= factors[0] + factors[1] <= 1.2 * (1 + COLOUR)
            assert abs(factors[2]) <= 1.2 * 0.75 * COLOUR * float(before.std()) + 1e-6
    assert (after - before).abs().mean() > 0.05


def test_the_loss_by_norms_has_the_gradient_of_the_mean_square() -> None:
    source = torch.Generator().manual_seed(0)
    ours = torch.randn(4, 3, 5, 5, generator=source, dtype=torch.float64).requires_grad_()
    theirs = torch.randn(4, 3, 5, 5, generator=source, dtype=torch.float64)
    feature_loss([ours], [theirs]).backward()
    wanted = 2 * 2 * (ours.detach() - theirs) / theirs.square().sum()  # the last place counts twice
    assert torch.allclose(ours.grad, wanted, rtol=1e-12, atol=0)
    same = theirs.clone().requires_grad_()
    feature_loss([same], [theirs]).backward()
    assert torch.equal(same.grad, torch.zeros_like(theirs)), "no NaN where the two agree"


def test_freed_memory_is_kept() -> None:
    code = """
import platform, resource
import numpy as np
from edgesparse.training.memory import keep_freed
assert keep_freed() == (platform.libc_ver()[0] == "glibc")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 22)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
print(min(faults() for _ in range(5)), first, platform.libc_ver()[0])
"""
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    if made[2:] == ["glibc"]:
        assert int(made[0]) < 100, "32 MB are 8192 pages of 4 kB"
