"""Which state finetuning keeps, by looks at few inputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import sem

from edgesparse.training.features import distances, output_distance
from edgesparse.training.judging import LATE, TAKEN_BACK, VIEWS, Judge, blends, parts, within_chance


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


def looked(values: list[float], late: int = 0, views: int = 1) -> list[tuple[float, int]]:
    """What is kept, and how stale it is, after looks at these states; from number `late` on they are late."""
    inputs, student = torch.tensor([[0.9, -0.9], [1.0, -1.0], [1.1, -1.1]]), Student()
    judge = Judge(Student(), inputs, [inputs] * (views - 1), batch=2)
    seen = []
    for number, value in enumerate(values):
        student.bias.data.fill_(value)
        judge.look(student, 10 * number, lambda logits: 1.0, late=number >= late)
        kept = judge.best.get("weights", {}).get("bias", torch.tensor(float("nan")))
        seen.append((round(float(kept), 6), judge.stale))
    return seen


def test_the_latest_state_within_chance_is_kept() -> None:
    # -1 is as far away as 1 on every input; 1.5 is further on all of them
    assert looked([2.0, 1.0, -1.0, 1.5, 1.0]) == [(2.0, 0), (1.0, 0), (-1.0, 0), (-1.0, 1), (1.0, 0)]


def test_the_first_state_gives_way_to_what_is_better_only() -> None:
    assert looked([1.0, -1.0, 3.0, 0.5]) == [(1.0, 0), (1.0, 0), (1.0, 1), (0.5, 0)]


def test_states_that_are_not_finite_are_never_kept() -> None:
    assert looked([1.0, float("nan"), float("inf")]) == [(1.0, 0), (1.0, 1), (1.0, 2)]
    assert "nan" in str(looked([float("nan")])[0][0])


def test_looks_that_are_not_late_are_not_stale() -> None:
    seen = looked([1.0, 2.0, 3.0, 4.0, 3.0, 2.0], late=4)
    assert seen == [(1.0, 0), (1.0, 0), (1.0, 0), (1.0, 0), (1.0, 1), (1.0, 2)]


class Sides(torch.nn.Module):
    """Logits [N, 2] with one factor for inputs whose first value is positive, and one for the others."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = torch.nn.Parameter(torch.zeros(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * torch.where(inputs[:, :1] > 0, self.factors[0], self.factors[1])


def test_views_of_one_input_are_one_witness() -> None:
    inputs = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])

    def stale(inputs: torch.Tensor, views: int) -> int:
        student, judge = Sides(), Judge(Sides(), inputs, [inputs] * (views - 1), batch=50)
        for factors in ((1.0, 1.0), (1.2, 0.8)):  # two of three inputs get worse, one better
            student.factors.data = torch.tensor(factors)
            judge.look(student, 10, lambda logits: 1.0, late=True)
        return judge.stale

    assert stale(inputs, 1) == 0, "three inputs do not tell"
    assert stale(inputs, 100) == 0, "nor do the same three seen again and again"
    assert stale(inputs.repeat(100, 1), 1) == 1, "but 300 inputs do"


def test_the_best_of_the_states_offered_is_looked_at_and_the_student_stays() -> None:
    inputs, student = torch.tensor([[1.0, -1.0], [2.0, 1.0]]), Student()
    judge = Judge(Student(), inputs, [], batch=2)
    others = [{"bias": torch.tensor(value)} for value in (2.0, float("nan"), 0.25, 0.5)]
    for value, kept in ((1.0, 0.25), (float("nan"), 0.25), (0.1, 0.1)):
        student.bias.data.fill_(value)
        judge.look(student, 10, lambda logits: 1.0, late=True, others=others)
        assert float(judge.best["weights"]["bias"]) == pytest.approx(kept)
        assert float(student.bias.data) == pytest.approx(value, nan_ok=True)
        assert judge.stale == 0


def test_late_parameters_are_taken_back_in_part() -> None:
    start = {str(i): torch.tensor([0.0, 1.0]) for i in range(10)}
    end = {str(i): torch.tensor([0.0, 2.0 + i]) for i in range(10)}
    found = list(blends(start, end))
    assert len(found) == len(LATE) * len(TAKEN_BACK)
    for (late, share), made in zip(itertools.product(LATE, TAKEN_BACK), found, strict=True):
        for i, value in enumerate(made.values()):
            back = share if i >= 10 * late else 0.0
            wanted = [0.0, (1 - back) * (2 + i) + back]  # a zero of both stays one
            assert value.tolist() == pytest.approx(wanted)


def test_parts_of_pictures_judge_besides() -> None:
    pictures = torch.randn(3, 3, 16, 16)
    found = parts(pictures, seed=1)
    assert len(found) == 1 + VIEWS
    assert torch.equal(found[0], pictures.flip(3))
    assert all(view.shape == pictures.shape for view in found)
    every = [pictures, *found]
    assert not any(torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])
    assert all(map(torch.equal, found, parts(pictures, seed=1))), "every look is at the same"
    assert parts(torch.randn(3, 16), seed=1) == []
