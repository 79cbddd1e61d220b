"""Two processes on gloo: the masks agree on all ranks, whatever each rank's data and chance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loops import recipe, small
from torch import nn

from edgesparse.training import Sparsifier


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(small())
        torch.manual_seed(100 + rank)  # other data on each rank
        for number, method in enumerate(("gradual", "rigl", "sr-ste", "random", "autosparse", "cast")):
            # another seed on each rank: only rank 0's choice counts
            sparsifier = Sparsifier(model, recipe("group:4x1", 0.75, seed=rank), steps=8, method=method)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            for _ in range(8):
                optimizer.zero_grad()
                model(torch.randn(4, 1, 6, 6)).square().mean().backward()
                optimizer.step()
                sparsifier.step()
            sparsifier.finalize()
            state = {name: value.clone() for name, value in sparsifier.run.masks.items()}
            weights = {name: value.detach().clone() for name, value in sparsifier.model.named_parameters()}
            torch.save((state, weights), Path(folder) / f"{number}-{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_masks_and_weights_agree_on_all_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    for number in range(6):
        ours, theirs = (torch.load(tmp_path / f"{number}-{rank}.pt", weights_only=True) for rank in (0, 1))
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[name], other[name]) for name in mine)
