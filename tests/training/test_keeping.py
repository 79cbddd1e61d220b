"""Which state finetuning keeps, by looks at few inputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import sem

from edgesparse.training.features import distances, output_distance
from edgesparse.training.trainer import VIEWS, Settings, Trainer, within_chance


@pytest.mark.parametrize("shift", [-2.0, 0.0, 0.9, 1.1, 3.0])
def test_chance_is_a_standard_error_of_the_paired_difference(shift: float) -> None:
    rng = np.random.default_rng(0)
    best, gaps = rng.gamma(2.0, size=19), rng.normal(size=19)
    gaps += shift * sem(gaps) - gaps.mean()
    ours = best + gaps
    assert within_chance(torch.from_numpy(ours), torch.from_numpy(best)) == (shift < 1.0)


def test_of_one_input_nothing_is_chance() -> None:
    assert within_chance(torch.tensor([1.0]), torch.tensor([1.0]))
    assert not within_chance(torch.tensor([1.1]), torch.tensor([1.0]))


def test_distances_are_the_outputs_distance_row_by_row() -> None:
    source = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(7, 5, generator=source) for _ in range(2))
    assert float(distances(ours, theirs).mean()) == pytest.approx(float(output_distance(ours, theirs)), rel=1e-5)
    maps = distances(ours.reshape(7, 1, 5, 1), theirs.reshape(7, 1, 5, 1))
    wanted = ((ours - theirs) ** 2).mean(1) / (theirs**2).mean(1)
    assert torch.allclose(maps, wanted, rtol=1e-5)


class Student(torch.nn.Module):
    """Logits [N, 2] from one parameter: `bias` is how far they are from the teacher's zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.bias


def looked(values: list[float], steps: int = 0, views: int = 1) -> list[tuple[float, int]]:
    """What is kept, and how stale it is, after looks at these states, ten steps apart."""
    made = Trainer.__new__(Trainer)
    made.student, made.held_back = Student(), torch.tensor([[0.9, -0.9], [1.0, -1.0], [1.1, -1.1]])
    made.views, made.wanted = made.held_back.repeat(views, 1), torch.zeros(3 * views, 2)
    made.settings, made.steps, made.teach = SimpleNamespace(batch=2), steps, "both"
    made.best, made.stale = {"each": torch.full((3,), float("inf")), "at": 0}, 0
    seen = []
    for number, value in enumerate(values):
        made.done = 10 * number
        made.student.bias.data.fill_(value)
        made._look()
        kept = made.best.get("weights", {}).get("bias", torch.tensor(float("nan")))
        seen.append((round(float(kept), 6), made.stale))
    return seen


def test_the_latest_state_within_chance_is_kept() -> None:
    # -1 is as far away as 1 on every input; 1.5 is further on all of them
    assert looked([2.0, 1.0, -1.0, 1.5, 1.0]) == [(2.0, 0), (1.0, 0), (-1.0, 0), (-1.0, 1), (1.0, 0)]


def test_the_first_state_gives_way_to_what_is_better_only() -> None:
    assert looked([1.0, -1.0, 3.0, 0.5]) == [(1.0, 0), (1.0, 0), (1.0, 1), (0.5, 0)]


def test_states_that_are_not_finite_are_never_kept() -> None:
    assert looked([1.0, float("nan"), float("inf")]) == [(1.0, 0), (1.0, 1), (1.0, 2)]
    assert "nan" in str(looked([float("nan")])[0][0])


def test_no_look_in_the_first_half_of_the_steps_is_stale() -> None:
    seen = looked([1.0, 2.0, 3.0, 4.0, 3.0, 2.0], steps=80)
    assert seen == [(1.0, 0), (1.0, 0), (1.0, 0), (1.0, 0), (1.0, 1), (1.0, 2)]


def test_views_of_one_input_are_one_witness() -> None:
    assert looked([2.0, 1.0, -1.0, 1.5, 1.0], views=5) == looked([2.0, 1.0, -1.0, 1.5, 1.0])
    made = Trainer.__new__(Trainer)
    made.held_back, made.settings = torch.randn(3, 3, 16, 16), Settings(augment="strong", crop_size=8)
    views = made._parts_of_pictures()
    assert len(views) == VIEWS
    assert all(view.shape == made.held_back.shape and not torch.equal(view, made.held_back) for view in views)
    assert not torch.equal(views[0], views[1])
    assert all(map(torch.equal, views, made._parts_of_pictures())), "every look is at the same"
    made.settings = Settings(augment="shift")
    assert made._parts_of_pictures() == []
