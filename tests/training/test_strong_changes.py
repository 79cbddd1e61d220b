"""Strong changes of photographs, the loss by norms, and the memory that training keeps."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from edgesparse.training import inputs
from edgesparse.training.features import feature_loss
from edgesparse.training.inputs import COLOUR, augment


def test_pictures_have_places_of_others_or_are_blended_with_them() -> None:
    count = 2000
    # the pixels of a picture are all its number, and numbers are far apart, so that each tells what it is made of
    own = 3.0 ** torch.arange(6)
    numbers = own.repeat(count // 6 + 1)[:count]
    source = torch.Generator().manual_seed(0)
    batch = numbers.reshape(-1, 1, 1, 1).expand(-1, 3, 12, 9).clone()
    made = inputs._woven(batch, source, lambda one: inputs._strong_crop(one, source, 8))
    assert made.shape == (count, 3, 11, 8)
    assert torch.equal(made, made[:, :1].expand(-1, 3, -1, -1)), "channels go together"
    assert float(made.min()) >= 1.0 - 1e-3, "nothing but the pictures"
    assert float(made.max()) <= float(own[-1]) * (1 + 1e-5)
    spread = made.flatten(1).amax(1) - made.flatten(1).amin(1)
    even = spread <= 1e-4 * numbers
    kept = even & ((made[:, 0, 0, 0] / numbers - 1).abs() < 1e-4)
    # a fifth of what is mixed finds the same number
    once = inputs.WOVEN + inputs.BLENDED
    assert int(kept.sum()) / count == pytest.approx((1 - once * 5 / 6) ** 2, abs=0.05)
    woven = 1 - (1 - inputs.WOVEN * 5 / 6) ** 2
    assert int((~even).sum()) / count == pytest.approx(woven, abs=0.06)


def test_strong_crops_are_turned_parts_of_the_picture() -> None:
    # a picture whose values are its coordinates, so that each crop tells where it is from
    down, right = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 65), indexing="ij")
    both = torch.stack([down, right]).repeat(400, 1, 1, 1)
    made = inputs._strong_crop(both, torch.Generator().manual_seed(3), None)
    along = made[:, :, 32, 33] - made[:, :, 32, 31]  # of one step to the right: down, right
    below = made[:, :, 33, 32] - made[:, :, 31, 32]
    area = (along[:, 1] * below[:, 0] - along[:, 0] * below[:, 1]).abs() * 16 * 16
    assert 0.12 < float(area.min()) < 0.2
    assert 0.9 < float(area.max()) < 1.05
    angle = torch.rad2deg(torch.atan2(along[:, 0], along[:, 1].abs()))
    assert 0.35 < float((angle.abs() > 0.5).float().mean()) < 0.65
    assert float(angle.abs().max()) <= inputs.TURN + 0.5
    assert float((angle.abs() > inputs.TURN / 2).float().mean()) > 0.15


def test_whole_pictures_are_mirrored_and_woven_in_their_own_size() -> None:
    batch = torch.randn(400, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    made = inputs._woven(batch, source := torch.Generator().manual_seed(1), lambda one: inputs._mirrored(one, source))
    same, turned = ((made - one).abs().flatten(1).amax(1) < 1e-5 for one in (batch, batch.flip(3)))
    alone = (1 - inputs.WOVEN - inputs.BLENDED) ** 2
    assert int(same.sum()) / 400 == pytest.approx(alone / 2, abs=0.06)
    assert int(turned.sum()) / 400 == pytest.approx(alone / 2, abs=0.06)
    assert augment(batch, source, "whole", 5).shape == batch.shape


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
