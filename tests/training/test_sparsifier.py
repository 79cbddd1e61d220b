"""The sparsifier in a user's loop: every method reaches its pattern and resumes bit for bit; bad input is refused."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loops import Loop, recipe, small
from torch import nn

from edgesparse.errors import EdgesparseError, PatternError, RecipeError, UnsupportedError, UsageError
from edgesparse.pattern import density
from edgesparse.recipe import Recipe
from edgesparse.training import (
    CheckpointError,
    NotFiniteError,
    Sparsifier,
    load_checkpoint,
    methods,
    save_checkpoint,
)
from edgesparse.training.run import has_pattern

METHODS = sorted(methods().keys() - {"given"})  # of a dense model
PATTERNS = ("unstructured", "group:4x1", "group:8x1", "nm:2:4", "fanin", "block:2x4", "channel")


def made(model: nn.Module, pattern: str = "unstructured", steps: int = 12, **options) -> Sparsifier:
    share = None if pattern.startswith("nm") else 0.75
    return Sparsifier(model, recipe(pattern, share), steps=steps, **options)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_with_the_pattern_and_the_density(method: str, pattern: str) -> None:
    if method in ("rigl", "autosparse") and pattern.startswith("nm"):
        pytest.skip("refused: tested below")
    loop = Loop(lambda model: made(model, pattern, method=method)).run(12)
    reports = loop.sparsifier.finalize()
    assert [one.name for one in reports] == ["wide.conv", "last.conv"]
    for report in reports:
        layer = loop.sparsifier.run.layers[report.name]
        mask = layer.canonical_mask(loop.sparsifier.run.masks[report.name])
        weight = layer.view(layer.weight)
        assert has_pattern(loop.sparsifier.run.patterns[report.name], mask)
        assert not weight[~mask].any()
        if method != "autosparse":  # which learns how dense each layer is
            assert density(mask) == pytest.approx(0.5 if pattern == "nm:2:4" else 0.25, abs=0.1)
    assert loop.sparsifier.sparsity == pytest.approx(0.5 if pattern == "nm:2:4" else 0.75, abs=0.08)
    # later steps, for fine-tuning, keep the zeros; momentum does not revive them
    before = {name: mask.clone() for name, mask in loop.sparsifier.run.masks.items()}
    loop.run(2)
    for name, layer in loop.sparsifier.run.layers.items():
        assert torch.equal(loop.sparsifier.run.masks[name], before[name])
        assert not layer.weight[~before[name]].any()


@pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumes_bit_for_bit(method: str, allocation: str, tmp_path: Path) -> None:
    def start(model: nn.Module) -> Sparsifier:
        return made(model, "group:4x1", method=method, allocation=allocation)

    whole = Loop(start).run(12)
    for cut in (1, 5, 11):
        first = Loop(start).run(cut)
        save_checkpoint(tmp_path / "run.pt", first.parts())
        second = Loop(start)
        parts = second.parts()
        del parts["at"]
        second.at = load_checkpoint(tmp_path / "run.pt", parts)["at"]
        second.run(12 - cut)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[name]), name
        for name, mask in whole.sparsifier.run.masks.items():
            assert torch.equal(mask, second.sparsifier.run.masks[name])


def test_state_is_a_copy() -> None:
    loop = Loop(lambda model: made(model, method="sr-ste")).run(2)
    state = loop.sparsifier.state_dict()
    before = copy.deepcopy(state)
    loop.run(3)
    for name, mask in before["masks"].items():
        assert torch.equal(mask, state["masks"][name])
        assert torch.equal(before["memory"]["dense"][name], state["memory"]["dense"][name])


def test_gradual_follows_the_cubic_schedule() -> None:
    loop = Loop(lambda model: made(model, steps=100, end=1.0, updates=100))
    for step in (10, 50, 100):
        loop.run(step - loop.at)
        wanted = 0.75 * (1 - (1 - step / 100) ** 3)
        assert loop.sparsifier.sparsity == pytest.approx(wanted, abs=0.01)


def test_sr_ste_keeps_a_dense_weight_behind_the_sparse_one() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    model[0].weight.data.copy_(weight)
    sparsifier = Sparsifier(
        model, Recipe.from_dict({"pattern": "nm:2:4"}), steps=100, method="sr-ste", ramp=0.0, decay=0.1, every=1
    )
    mask = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    assert torch.equal(model[0].weight.data, weight * mask)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.ones(1, 4)).sum().backward()  # the gradient is one everywhere
    optimizer.step()
    sparsifier.step()
    # W - lr * g, and outside the mask W * (1 - decay) first
    wanted = torch.where(mask == 1, weight, weight * 0.9) - 0.5
    assert torch.allclose(sparsifier.method.memory["dense"]["0"], wanted)
    assert torch.allclose(model[0].weight.data, wanted * mask)


def test_rigl_grows_where_gradients_are_large() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].weight.data.copy_(torch.arange(16, 0, -1).reshape(4, 4))
    sparsifier = Sparsifier(
        model, Recipe.from_dict({"pattern": "unstructured", "density": 0.5}), steps=100, method="rigl", updates=75
    )
    gradient = torch.zeros(4, 4)
    gradient[3, 3] = 5.0
    model[0].weight.grad = gradient
    sparsifier.step()
    sparsifier.step()
    mask = sparsifier.run.masks["0"]
    assert mask.sum() == 8
    assert mask[3, 3]  # grown, at zero
    assert model[0].weight[3, 3] == 0
    assert mask[0].all()  # the strongest stay


@pytest.mark.parametrize(("method", "options"), [("rigl", {"updates": 9}), ("autosparse", {"every": 1})])
def test_methods_that_need_gradients_without_them(method: str, options: dict) -> None:
    sparsifier = made(small(), method=method, **options)
    with pytest.raises(UsageError, match=re.escape("has no gradient when step() is called")):
        sparsifier.step()


@pytest.mark.parametrize("method", ["rigl", "autosparse"])
def test_patterns_of_fixed_density_are_refused(method: str) -> None:
    with pytest.raises(UnsupportedError, match=f"method {method} cannot train pattern nm:2:4"):
        made(small(), "nm:2:4", method=method)


def test_rigl_waits_where_scaled_gradients_overflow() -> None:
    loop = Loop(lambda model: made(model, method="rigl")).run(1)
    before = {name: mask.clone() for name, mask in loop.sparsifier.run.masks.items()}
    loop.model.wide.conv.weight.grad.fill_(float("inf"))
    loop.sparsifier.step()
    assert all(torch.equal(mask, loop.sparsifier.run.masks[name]) for name, mask in before.items())


def test_hypersparse_term_is_zero_with_the_gradient_of_the_paper() -> None:
    model = small()
    sparsifier = made(model, method="hypersparse")
    term = sparsifier.regularizer()
    assert float(term.detach()) == pytest.approx(0.0, abs=1e-5)
    term.backward()
    weight = model.wide.conv.weight
    assert torch.equal(weight.grad.sign(), weight.detach().sign())
    flat, size = weight.detach().abs().reshape(-1), weight.grad.abs().reshape(-1)
    assert size[flat.argmin()] > size[flat.argmax()]


def test_hypersparse_spares_strong_groups_whatever_weights_they_have() -> None:
    model = small()
    sparsifier = made(model, "group:4x1", method="hypersparse")
    sparsifier.regularizer().backward()
    weight = model.wide.conv.weight.detach().flatten(1)
    slope = model.wide.conv.weight.grad.flatten(1)
    groups, slopes = weight.reshape(-1, 4, weight.shape[1]), slope.reshape(-1, 4, weight.shape[1])
    norms, sizes = groups.norm(dim=1), slopes.norm(dim=1)
    # along the group's own weights, and the weaker the group, the harder
    assert torch.allclose(slopes / sizes[:, None], groups / norms[:, None], atol=1e-5)
    order = norms.flatten().argsort()
    assert (sizes.flatten()[order].diff() <= 1e-9).all()
    assert sizes.max() > 1.2 * sizes.min()


def test_gradient_accumulation_clipping_and_averages() -> None:
    torch.manual_seed(0)
    model = small()
    sparsifier = made(model, "group:4x1", steps=6)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        optimizer.zero_grad()
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(4, 1, 6, 6)).float().square().mean()
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        sparsifier.step(loss)
        average.update_parameters(model)
    sparsifier.finalize()
    sparsifier.mask(average.module)
    mask = sparsifier.run.masks["wide.conv"]
    assert not average.module.wide.conv.weight[~mask].any()
    assert average.module.wide.conv.weight[mask].all()


def test_masks_have_the_weights_memory_format() -> None:
    model = small().to(memory_format=torch.channels_last)
    sparsifier = Sparsifier(model, Recipe.from_dict({"pattern": "unstructured", "density": 0.5}), steps=1)
    assert sparsifier.run.masks["stem.conv"].stride() == model.stem.conv.weight.stride()
    loop_mask = sparsifier.run.layers["stem.conv"].canonical_mask(sparsifier.run.masks["stem.conv"])
    assert loop_mask.shape == (8, 1, 9)


# --- bad input


def test_tied_weights() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    with pytest.raises(UnsupportedError, match=r"the weight of layer '0' is shared.*0.weight, 1.weight"):
        Sparsifier(model, Recipe.from_dict({"pattern": "unstructured", "density": 0.5}), steps=1)


def test_one_module_in_two_places() -> None:
    twice = nn.Linear(6, 6)
    with pytest.raises(UnsupportedError, match="is shared"):
        Sparsifier(
            nn.Sequential(twice, nn.ReLU(), twice),
            Recipe.from_dict({"pattern": "unstructured", "density": 0.5}),
            steps=1,
        )


def test_tied_weights_may_stay_dense() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    Sparsifier(model, Recipe.from_dict({"targets": ["2"], "pattern": "unstructured", "density": 0.5}), steps=1)


def test_computed_weights() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)))
    with pytest.raises(UnsupportedError, match="is computed"):
        Sparsifier(model, Recipe.from_dict({"pattern": "unstructured", "density": 0.5}), steps=1)


def test_frozen_weights() -> None:
    model = small()
    model.wide.conv.weight.requires_grad_(False)
    with pytest.raises(UnsupportedError, match="is not trained"):
        made(model)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules() -> None:
    with pytest.raises(UnsupportedError, match="has no weight yet"):
        Sparsifier(
            nn.Sequential(nn.LazyLinear(4)), Recipe.from_dict({"pattern": "unstructured", "density": 0.5}), steps=1
        )


def test_a_layer_that_changes_its_shape() -> None:
    loop = Loop(made).run(1)
    loop.model.wide.conv.weight = nn.Parameter(torch.ones(24, 8, 1, 1))
    with pytest.raises(EdgesparseError, match=r"'wide.conv' has changed its shape.*\(24, 8, 1, 1\)"):
        loop.sparsifier.step()


def test_a_weight_that_is_replaced() -> None:
    loop = Loop(made).run(1)
    loop.model.wide.conv.weight = nn.Parameter(torch.ones(16, 8, 1, 1))
    with pytest.raises(EdgesparseError, match="was replaced by another parameter"):
        loop.sparsifier.step()


@pytest.mark.parametrize("loss", [float("nan"), torch.tensor(float("inf"))])
def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(loss, tmp_path: Path) -> None:
    loop = Loop(made).run(3)
    save_checkpoint(tmp_path / "run.pt", loop.parts())
    good = (tmp_path / "run.pt").read_bytes()
    with pytest.raises(NotFiniteError, match=r"the loss is (nan|inf) in step 4.*last good checkpoint"):
        loop.sparsifier.step(loss)
    assert (tmp_path / "run.pt").read_bytes() == good
    assert loop.sparsifier.run.step == 3


def test_weights_that_are_not_finite() -> None:
    loop = Loop(made).run(1)
    loop.model.wide.conv.weight.data[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"'wide.conv' has weights or gradients that are not finite"):
        loop.sparsifier.step()


def test_states_of_other_runs() -> None:
    state = Loop(made).run(1).sparsifier.state_dict()
    cases = {
        "recipe": Sparsifier(small(), recipe("unstructured", 0.5), steps=12),
        "method": made(small(), end=0.9),
        "steps": made(small(), steps=13),
        "allocation": made(small(), allocation="lamp"),
    }
    for what, sparsifier in cases.items():
        before = sparsifier.state_dict()
        with pytest.raises(CheckpointError, match=f"the checkpoint is of another {what}"):
            sparsifier.load_state_dict(state)
        assert sparsifier.run.step == before["step"]
    wider = small()
    wider.last.conv = nn.Conv2d(16, 32, 1)
    with pytest.raises(CheckpointError, match=r"of another model: last.conv is"):
        made(wider).load_state_dict(state)
    with pytest.raises(CheckpointError, match="no state of a sparsifier"):
        made(small()).load_state_dict({"masks": {}})


def test_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    loop = Loop(made)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.pt", {"model": loop.model})
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        load_checkpoint(tmp_path / "bad.pt", {"model": loop.model})
    torch.save({"other": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="parts are missing"):
        load_checkpoint(tmp_path / "other.pt", {"model": loop.model})
    save_checkpoint(tmp_path / "run.pt", {"model": nn.Linear(2, 2)})
    with pytest.raises(CheckpointError, match="the state of model does not fit"):
        load_checkpoint(tmp_path / "run.pt", {"model": loop.model})
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "nowhere" / "run.pt", loop.parts())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pt", "other.pt", "run.pt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gradul"}, "did you mean gradual"),
        ({"method": "gradual", "ende": 1}, "no setting 'ende'"),
        ({"steps": 0}, "steps is 0"),
        ({"allocation": "best"}, "unknown allocation"),
        ({"begin": 0.8, "end": 0.2}, "must rise within 0 and 1"),
        ({"updates": 0}, "must be positive"),
        ({"method": "rigl", "initial": "zeros"}, "take magnitude or random"),
        ({"method": "sr-ste", "flow": "none"}, "take structure or mask"),
    ],
)
def test_wrong_arguments(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sparsifier(small(), recipe(), **{"steps": 10, **options})


def test_recipes_that_do_not_fit() -> None:
    with pytest.raises(RecipeError, match="matches no layer"):
        Sparsifier(small(), Recipe.from_dict({"targets": ["nope"], "pattern": "unstructured", "density": 0.5}), steps=1)
    with pytest.raises(UsageError, match="no layer of the model becomes sparse"):
        Sparsifier(small(), Recipe.from_dict({}), steps=1)
    with pytest.raises(UsageError, match=r"no layer.*needs 32 output"):
        Sparsifier(small(), recipe("group:32x1"), steps=1)
    with pytest.raises((RecipeError, PatternError)):
        Sparsifier(small(), recipe("unstructured", None), steps=1)


def test_masking_another_architecture() -> None:
    with pytest.raises(UsageError, match=r"has no layer 'wide.conv'"):
        made(small()).mask(nn.Linear(2, 2))


def test_importing_edgesparse_loads_no_torch() -> None:
    code = "import sys, edgesparse, edgesparse.cli, edgesparse.pipeline; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_is_exact_projection_of_the_compiler() -> None:
    from edgesparse.pattern import SparsePattern, best_mask

    loop = Loop(lambda model: made(model, "group:4x1", end=0.99, updates=1, steps=100)).run(99)
    weight = loop.sparsifier.run.layers["wide.conv"].view(loop.model.wide.conv.weight).astype(np.float64)
    mask = best_mask(SparsePattern("group", 4, 1), weight**2, 0.25)
    assert np.array_equal(
        mask, loop.sparsifier.run.layers["wide.conv"].canonical_mask(loop.sparsifier.run.masks["wide.conv"])
    )
