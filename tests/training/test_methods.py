"""What single methods promise, each against a small calculation of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loops import Loop, recipe
from scipy.optimize import minimize
from torch import nn

from edgesparse.errors import UsageError
from edgesparse.pattern import SparsePattern, best_mask, keeps
from edgesparse.recipe import Recipe
from edgesparse.training import Sparsifier, methods
from edgesparse.training.run import has_pattern
from edgesparse.training.shrinking import envelope_prox


def one_layer(rows: int = 8, columns: int = 8, **options: object) -> tuple[nn.Module, Sparsifier]:
    """A linear layer at constant fan-in or groups, with its sparsifier."""
    model = nn.Sequential(nn.Linear(columns, rows, bias=False))
    chosen = Recipe.from_dict({"pattern": options.pop("pattern"), "density": options.pop("density")})
    return model, Sparsifier(model, chosen, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("strength", [0.1, 1.0, 20.0])
def test_the_envelope_prox_is_the_minimum(k: int, strength: float) -> None:
    norms = np.abs(np.random.default_rng(k).standard_normal(7))
    found = envelope_prox(norms, k, strength)

    def k_support_square(x: np.ndarray) -> float:
        """Argyriou, Foygel and Srebro (1204.5043), equation 3: from the sorted entries."""
        z = np.sort(np.abs(x))[::-1]
        for r in range(k):
            tail = z[k - r - 1 :].sum() / (r + 1)
            before = np.inf if k - r - 1 == 0 else z[k - r - 2]
            if before > tail >= z[k - r - 1] - 1e-12:
                return float((z[: k - r - 1] ** 2).sum() + (r + 1) * tail**2)
        raise AssertionError

    def objective(x: np.ndarray) -> float:
        return 0.5 * strength * k_support_square(x) + 0.5 * float(((x - norms) ** 2).sum())

    start = minimize(
        objective, norms / (1 + strength), method="Nelder-Mead", options={"maxiter": 20000, "fatol": 1e-12}
    )
    assert objective(found) <= start.fun + 1e-9
    source = np.random.default_rng(0)
    for size in (1e-1, 1e-3):
        assert all(objective(found + size * source.standard_normal(7)) >= objective(found) - 1e-12 for _ in range(50))


def test_the_envelope_prox_ends_in_the_projection() -> None:
    norms = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    assert np.allclose((1 + 1e6) * envelope_prox(norms, 2, 1e6), [5, 4, 0, 0, 0], atol=1e-3)
    assert np.allclose(envelope_prox(norms, 2, 0.0), norms)
    assert np.allclose(envelope_prox(norms, 5, 1.0), norms / 2)


@pytest.mark.parametrize("back", [False, True])
def test_rewinding_prunes_the_same_share_in_each_round(back: bool) -> None:
    """Rounds of 10, 10 and 20 steps, dense, half and a quarter; weights grow by 1 a step, and go back if told so."""
    settings = {"rounds": 3, "last": 0.5, "weights": back, "rewind": 0.25}
    model, sparsifier = one_layer(4, 4, pattern="unstructured", density=0.25, steps=40, method="rewinding", **settings)
    assert sparsifier.method.begins == (0.0, 0.25, 0.5)
    first = torch.arange(1.0, 17.0).reshape(4, 4)
    model[0].weight.data.copy_(first)
    kept, grown = 16, 0
    for step in range(1, 41):
        model[0].weight.data.add_(1.0)
        sparsifier.step()
        grown += 1
        if step in (10, 20):
            kept //= 2
            grown = 2 if back else grown  # as after a quarter of the first round
        expected = torch.where(first > 16 - kept, first + grown, 0.0)
        assert torch.equal(model[0].weight.data, expected), step
    sparsifier.finalize()
    assert torch.equal(model[0].weight.data, torch.where(first > 12, first + grown, 0.0))


def test_rewinding_has_a_round_to_prune_after() -> None:
    with pytest.raises(UsageError, match="rounds is 1"):
        one_layer(pattern="unstructured", density=0.5, steps=10, method="rewinding", rounds=1)


def test_rigl_gives_up_dead_channels_and_keeps_the_fan_in_constant() -> None:
    model, sparsifier = one_layer(8, 16, pattern="fanin", density=0.25, steps=100, method="rigl", updates=75)
    weight = torch.rand(8, 16) + 1.0
    weight[5] = 1e-4  # a channel whose weights are all weak, and that no gradient asks for
    model[0].weight.data.copy_(weight)
    sparsifier.method.start(sparsifier.run)
    gradient = torch.rand(8, 16) + 1.0
    gradient[5] = 0.0
    for _ in range(2):
        model[0].weight.grad = gradient.clone()
        sparsifier.step()
    mask = sparsifier.run.masks["0"]
    assert not mask[5].any()
    counts = mask.sum(1)
    assert set(counts.tolist()) == {0, int(counts.max())}
    assert int(counts.max()) == round(8 * 4 / 7)  # its weights have gone to the others
    assert has_pattern(SparsePattern("fanin"), mask.numpy()[:, :, None])
    # without ablation it stays
    other, kept = one_layer(8, 16, pattern="fanin", density=0.25, steps=100, method="rigl", updates=75, ablate=0.0)
    other[0].weight.data.copy_(weight)
    kept.method.start(kept.run)
    for _ in range(2):
        other[0].weight.grad = gradient.clone()
        kept.step()
    assert set(kept.run.masks["0"].sum(1).tolist()) == {4}


def test_rigl_gives_up_dead_groups() -> None:
    model, sparsifier = one_layer(16, 8, pattern="group:4x1", density=0.25, steps=100, method="rigl", updates=75)
    weight, gradient = torch.rand(16, 8) + 1.0, torch.rand(16, 8) + 1.0
    weight[4:8], gradient[4:8] = 1e-4, 0.0
    model[0].weight.data.copy_(weight)
    sparsifier.run.set_masks({"0": best_mask(SparsePattern("fanin"), np.ones((16, 8, 1)), 0.25)})  # two of each row
    for _ in range(2):
        model[0].weight.grad = gradient.clone()
        sparsifier.step()
    mask = sparsifier.run.masks["0"]
    assert not mask[4:8].any()
    assert int(mask.sum()) == 32
    assert keeps(SparsePattern("group", 4, 1), mask.numpy()[:, :, None])


def test_autosparse_runs_with_soft_thresholds() -> None:
    options = {"steps": 1000, "method": "autosparse", "ramp": 0.0, "every": 1}
    model, sparsifier = one_layer(4, 4, pattern="unstructured", density=0.25, **options)
    weight = torch.linspace(-8, 7, 16).reshape(4, 4)
    model[0].weight.data.copy_(weight)
    sparsifier.method.start(sparsifier.run)
    model[0].weight.grad = torch.zeros(4, 4)
    sparsifier.step()
    # the four largest stay; the threshold is the largest that went: 6 of 8, 7, 7, 6, ties to the first
    shown = model[0].weight.data
    assert torch.equal(shown, weight.sign() * (weight.abs() - 6.0).clamp_min(0.0) * sparsifier.run.masks["0"])
    assert int(sparsifier.run.masks["0"].sum()) == 4
    # a step on the shown weights is one on the dense: whole inside the mask, times alpha outside
    before = sparsifier.method.memory["dense"]["0"].clone()
    model[0].weight.data.sub_(0.1)
    model[0].weight.grad = torch.ones(4, 4)
    sparsifier.step()
    moved = sparsifier.method.memory["dense"]["0"] - before
    inside = sparsifier.run.masks["0"]
    assert torch.allclose(moved[inside], torch.tensor(-0.1), atol=1e-6)
    assert torch.allclose(moved[~inside], torch.tensor(-0.075), atol=1e-5)


def test_autosparse_leaves_more_where_the_gradient_asks_for_it() -> None:
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    torch.manual_seed(0)
    for layer in model:
        layer.weight.data.normal_()
    chosen = Recipe.from_dict({"pattern": "unstructured", "density": 0.5})
    sparsifier = Sparsifier(model, chosen, steps=200, method="autosparse", every=1, ramp=0.0)
    for _ in range(40):
        # larger weights lower the loss in the first layer: it wants a lower threshold
        model[0].weight.grad = -model[0].weight.data.sign()
        model[1].weight.grad = model[1].weight.data.sign()
        sparsifier.step()
    level = sparsifier.method.memory["level"]
    assert level["0"] < 0 < level["1"]
    first, second = (one.density for one in sparsifier.report())
    assert first > 0.55 > 0.45 > second
    assert sparsifier.sparsity == pytest.approx(0.5, abs=0.01)


def test_progressive_flow_fades_what_is_outside() -> None:
    model, sparsifier = one_layer(
        4,
        4,
        pattern="unstructured",
        density=0.5,
        steps=10,
        method="sr-ste",
        flow="mask",
        ramp=0.8,
        end=0.85,
        decay=0.0,
        every=1,
    )
    weight = torch.linspace(-8, 7, 16).reshape(4, 4)
    model[0].weight.data.copy_(weight)
    sparsifier.method.start(sparsifier.run)
    assert torch.equal(model[0].weight.data, weight)  # as if dense
    for step in range(1, 11):
        sparsifier.step()
        left = max(1.0 - step / 8, 0.0) if step < 9 else 0.0
        inside = sparsifier.run.masks["0"].float()
        assert torch.allclose(model[0].weight.data, weight * (inside + left * (1 - inside)), atol=1e-6), step
        assert int(inside.sum()) == 8


def test_cast_lets_weights_without_gradient_go_first() -> None:
    model, sparsifier = one_layer(
        4, 16, pattern="unstructured", density=0.5, steps=100, method="cast", every=1, ramp=0.0, end=0.7, strength=4.0
    )
    weight = torch.cat([torch.full((4, 8), 1.0), torch.full((4, 8), 4.0)], 1)
    model[0].weight.data.copy_(weight)
    sparsifier.method.start(sparsifier.run)
    gradient = torch.full((4, 16), 1.0)
    gradient[:, 0] = 0.01
    for _ in range(20):
        model[0].weight.grad = gradient
        sparsifier.step()
    now = model[0].weight.data
    assert torch.equal(now[:, 8:], weight[:, 8:])  # inside the mask nothing decays
    assert (now[:, 0] < now[:, 1]).all()
    assert (now[:, 1] < 1.0).all()
    sparsifier.finalize()
    assert float(model[0].weight.detach().norm()) == pytest.approx(float(now.norm()), rel=1e-5)  # scaled to what it had


@pytest.mark.parametrize("method", ["gradual", "autosparse", "cast", "group-proximal", "sr-ste", "soft-shrinkage"])
def test_the_loss_falls(method: str) -> None:
    """Forty steps on one batch learn it, whatever is pruned meanwhile."""
    inputs = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(16) % 4
    loop = Loop(lambda model: Sparsifier(model, recipe("group:4x1", 0.5), steps=40, method=method))
    losses = []
    for _ in range(40):
        loop.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(loop.model(inputs), targets) + loop.sparsifier.regularizer()
        loss.backward()
        loop.optimizer.step()
        loop.sparsifier.step(loss)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("across", "pattern"), [(False, "group:8x1"), (True, "group:2x8")])
@pytest.mark.parametrize("method", [name for name in methods() if name != "given"])
def test_no_method_gives_up_whole_channels(method: str, across: bool, pattern: str) -> None:
    """Ten outputs, and ten inputs, in groups of eight: the last two are weaker, and keep some of their weights."""
    shape = (64, 10) if across else (10, 64)
    model, sparsifier = one_layer(*shape, pattern=pattern, density=0.125, steps=20, method=method)
    share = torch.tensor([1.0] * 8 + [0.1] * 2)
    share = share if across else share[:, None]
    with torch.no_grad():
        model[0].weight.mul_(share)
    for _ in range(20):
        model[0].weight.grad = torch.randn(shape) * share
        sparsifier.step()
    sparsifier.finalize()
    assert (model[0].weight != 0).any(dim=0 if across else 1).all()
