"""Allocation, distillation and averages, each against what its definition says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from loops import Loop, recipe, small
from torch import nn

from edgesparse.errors import UsageError
from edgesparse.pattern import SparsePattern
from edgesparse.training import Sparsifier
from edgesparse.training.allocation import (
    ALLOCATIONS,
    allocate,
    even_tails,
    unit_energy,
    unit_numbers,
)
from edgesparse.training.distil import SquareHead, logit_loss
from edgesparse.training.soup import average, recalibrate, share

UNSTRUCTURED = SparsePattern("unstructured")


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("pattern", [UNSTRUCTURED, SparsePattern("group", 4, 1)])
def test_allocations_spend_the_budget(name: str, pattern: SparsePattern) -> None:
    source = np.random.default_rng(0)
    scores = [source.random(shape) ** 4 for shape in ((16, 8, 1), (64, 32, 1), (8, 8, 9), (128, 128, 1))]
    found = allocate(name, [pattern] * 4, [0.2] * 4, scores)
    sizes = [one.size for one in scores]
    assert all(0.0 < density <= 1.0 for density in found)
    assert np.dot(found, sizes) == pytest.approx(0.2 * sum(sizes), abs=4)


@pytest.mark.parametrize("name", ["unstructured", "group:4x1", "group:4x2", "nm:2:4", "fanin", "block:2x4", "channel"])
def test_every_weight_has_the_number_of_its_unit(name: str) -> None:
    pattern, scores = SparsePattern.parse(name), np.random.default_rng(0).random((10, 7, 3))
    numbers = unit_numbers(pattern, (10, 7, 3))
    found = np.bincount(numbers.reshape(-1), weights=scores.reshape(-1))
    np.testing.assert_allclose(found, unit_energy(pattern, scores))


@pytest.mark.parametrize("name", ["group:8x1", "group:4x2", "block:4x4"])
def test_smaller_last_groups_count_as_whole_ones(name: str) -> None:
    pattern = SparsePattern.parse(name)
    found = unit_energy(pattern, even_tails(pattern, np.ones((10, 7, 3))))
    assert found == pytest.approx(found[0])


def test_erk_is_proportional_until_full() -> None:
    scores = [np.ones((100, 100, 1)), np.ones((200, 50, 1)), np.ones((2, 2, 1))]
    found = allocate("erk", [UNSTRUCTURED] * 3, [0.1] * 3, scores)
    assert found[2] == 1.0  # it would get more than all of its own
    assert found[0] / found[1] == pytest.approx((200 / 1e4) / (250 / 1e4))


def test_lamp_on_an_example_by_hand() -> None:
    # layer 0: energies 1, 1, 2 -> scores 1/4, 1/3, 1; layer 1: 1, 9 -> 1/10, 1
    scores = [np.array([1.0, 1.0, 2.0]).reshape(3, 1, 1), np.array([1.0, 9.0]).reshape(2, 1, 1)]
    found = allocate("lamp", [UNSTRUCTURED] * 2, [0.6, 0.6], scores)  # three of five
    assert found == pytest.approx([2 / 3, 1 / 2])


def test_lamp_leaves_no_layer_empty() -> None:
    scores = [np.zeros((4, 4, 1)), np.ones((8, 8, 1))]
    assert min(allocate("lamp", [UNSTRUCTURED] * 2, [0.05] * 2, scores)) > 0


def test_fixed_patterns_take_no_part() -> None:
    scores = [np.ones((4, 4, 1)), np.ones((8, 8, 1))]
    assert allocate("lamp", [SparsePattern("nm", 2, 4), UNSTRUCTURED], [0.5, 0.25], scores) == [0.5, 0.25]


def test_logit_loss() -> None:
    teacher = torch.randn(5, 4)
    assert float(logit_loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    student = torch.zeros(1, 2, requires_grad=True)
    wanted = torch.tensor([[np.log(3.0), 0.0]])
    value = logit_loss(student, wanted, temperature=1.0)
    assert float(value.detach()) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-5)
    value.backward()
    assert torch.allclose(student.grad, torch.tensor([[0.5 - 0.75, 0.5 - 0.25]]))
    with pytest.raises(UsageError, match="must have the same classes"):
        logit_loss(student, torch.zeros(1, 3))
    with pytest.raises(UsageError, match="temperature"):
        logit_loss(student, student, temperature=0.0)


def test_square_head() -> None:
    teacher = small().eval()
    student = copy.deepcopy(teacher)
    head = SquareHead(student, teacher, ["wide", "last"])
    inputs = torch.randn(2, 1, 6, 6)
    student(inputs)
    assert float(head.loss(inputs).detach()) == 0.0
    with torch.no_grad():
        student.last.bn.weight.mul_(2.0)  # its ReLU's output doubles: the error equals the teacher's own square
        student.last.bn.bias.zero_()
        teacher.last.bn.bias.zero_()
    student(inputs)
    loss = head.loss(inputs)
    assert float(loss.detach()) == pytest.approx(0.5 * (0.0 + 1.0), abs=0.02)
    loss.backward()
    assert student.wide.conv.weight.grad is not None
    assert teacher.wide.conv.weight.grad is None
    with pytest.raises(UsageError, match="the student has not run"):
        head.loss(inputs)
    head.close()
    assert not student.last._forward_hooks
    with pytest.raises(UsageError, match="has no module 'nope'"):
        SquareHead(student, teacher, ["nope"])
    with pytest.raises(UsageError, match="no modules to compare"):
        SquareHead(student, teacher, [])


def _pair() -> tuple[Sparsifier, Sparsifier]:
    first = Loop(lambda model: Sparsifier(model, recipe(), steps=4)).run(4)
    first.sparsifier.finalize()
    second = Loop(lambda model: Sparsifier(model, recipe(), steps=4))
    second.model.load_state_dict(first.model.state_dict())
    second.sparsifier.load_state_dict(first.sparsifier.state_dict())
    second.at = 100
    second.run(3)
    return first.sparsifier, second.sparsifier


def test_average_of_runs_with_one_mask() -> None:
    first, second = _pair()
    made = average([first, second], [1.0, 3.0])
    wanted = 0.25 * first.model.wide.conv.weight + 0.75 * second.model.wide.conv.weight
    assert torch.allclose(made.wide.conv.weight, wanted)
    assert not made.wide.conv.weight[~first.run.masks["wide.conv"]].any()
    batches = [torch.randn(16, 1, 6, 6) for _ in range(3)]
    made.eval()
    recalibrate(made, batches)
    stem = nn.functional.conv2d(torch.cat(batches), made.stem.conv.weight, padding=1)
    assert torch.allclose(made.stem.bn.running_mean, stem.mean((0, 2, 3)), atol=1e-5)
    assert not made.training
    assert made.stem.bn.momentum == 0.1


def test_average_refuses_other_masks() -> None:
    first, second = _pair()
    second.run.masks["wide.conv"].logical_not_()
    with pytest.raises(UsageError, match=r"run 1 has another mask of layer 'wide.conv'"):
        average([first, second])
    with pytest.raises(UsageError, match="no runs"):
        average([])
    with pytest.raises(UsageError, match="the weights of the average"):
        average([first], [-1.0])
    other = Sparsifier(small(), recipe(ignore=["wide.conv"]), steps=4)
    with pytest.raises(UsageError, match="other sparse layers"):
        average([first, other])


def test_particles_meet_and_prune_alike() -> None:
    first, second = _pair()
    wanted = 0.5 * (first.model.wide.conv.weight.detach() + second.model.wide.conv.weight.detach())
    before = first.model.wide.conv.weight
    share([first, second])
    assert first.model.wide.conv.weight is before  # in place: optimizers go on
    assert torch.allclose(before, wanted)
    for one, other in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one.float(), other.float())
    # the next round of pruning chooses one mask for both
    made = [Sparsifier(one.model, recipe("unstructured", 0.9), steps=1).finalize() for one in (first, second)]
    assert made[0] == made[1]
    assert torch.equal(first.model.last.conv.weight, second.model.last.conv.weight)
