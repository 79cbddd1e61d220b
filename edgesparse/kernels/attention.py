"""Attention over feature-major matrices: every lane is a query of its own, so softmax crosses no lanes.

    y[e][i] = sum over j of v[e][j] * p[j][i]
    p[.][i] = softmax over j of (scale * sum over d of k[d][j] * q[d][i] + m[j])

Both products are the register tiles of `Spmm`: vectors of queries, blocks of keys (of values), nothing turned. The
scores of one tile of queries, against all keys, are the only intermediate; they stay in cache (the order of work is
FlashAttention's, arXiv 2205.14135, but for the keys, which are not cut: a row of scores is short on the edge).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from edgesparse.kernels.builder import Body, kernel
from edgesparse.kernels.tiles import Run, cut_pixels

_LOWEST = -3.4028234663852886e38


@dataclass(frozen=True)
class Attention:
    """All heads of one image of the batch.

    Attributes
    ----------
    queries, keys:
        Rows of q, and of k and v.
    width, depth:
        Features of a head in q and k, and in v.
    scale:
        What scores are multiplied by.
    mask:
        What is added to the scores: nothing ("none"), a value for each key ("keys"), or for each key and query
        ("queries").
    rows, vectors, lanes:
        Keys (values) and vectors of queries in a tile of accumulators; float32 values in a vector.
    few:
        See `Target.few`.

    Pointers: q, k, v, the mask (if any: ``[keys]``, or for each head ``[keys][pitch]`` with the queries side by side),
    workspace, y. Arguments: the pitches of q, k, v and y; elements from head to head in them; heads in all, and the
    parts they are shared in: each has `workspace` elements of its own; with a mask for queries, its pitch, and elements
    from head to head in it. Range: heads.
    """

    queries: int
    keys: int
    width: int
    depth: int
    scale: float
    mask: str
    rows: int
    vectors: int
    lanes: int
    barrier: str = ""
    few: bool = False

    @property
    def symbol(self) -> str:
        scale = float(self.scale).hex().replace("-", "m").replace("+", "").replace(".", "d")
        mask = ("" if self.mask == "none" else f"_{self.mask}") + ("_b" if self.barrier else "")
        mask += "_n" if self.few else ""
        shape = f"{self.queries}x{self.keys}_{self.width}x{self.depth}"
        return f"es_attention_f32_{shape}_{scale}{mask}_{self.rows}x{self.vectors}x{self.lanes}"

    @property
    def used_lanes(self) -> int:
        """Lanes that are used: halved until a vector fits the queries."""
        lanes = self.lanes
        while lanes > self.queries:
            lanes //= 2
        return lanes

    @property
    def workspace(self) -> int:
        """Elements for the scores of one tile of queries."""
        return self.keys * self.vectors * self.used_lanes

    @property
    def modest(self) -> Iterator[Attention]:
        """The same with ever fewer registers, for the same arguments; see `edgesparse.building.registers`."""
        if self.barrier:
            if not self.few:
                yield replace(self, few=True)
            yield from (replace(self, rows=rows, few=True) for rows in (4, 2, 1) if rows < self.rows)

    def build(self) -> Any:
        names = ["q", "k", "v", *(["m"] if self.mask != "none" else []), "s", "y"]
        return kernel(self.symbol, [(name, "float32") for name in names], self._body, self.barrier)

    def _body(self, body: Body) -> None:
        heads, parts = body.arg(8), body.arg(9)
        # Shares begin at heads * part // parts: this inverts it.
        part = body.let((body.begin * parts + heads - 1) // heads)
        scores = body.let(part * self.workspace)
        with body.loop(body.begin, body.end) as head:
            for run in cut_pixels(self.queries, self.used_lanes, self.vectors, 0).runs:
                with body.loop(0, run.repeat) as tile:
                    _Tile(self, body, run, head, body.let(tile * run.step), scores).emit()


class _Tile:
    """The queries of one tile against all keys of one head."""

    def __init__(self, spec: Attention, body: Body, run: Run, head: Any, base: Any, scores: Any) -> None:
        self.spec, self.body, self.run, self.base, self.scores = spec, body, run, base, scores
        self.lanes, self.wide = spec.used_lanes, len(run.offsets)
        self.acc = body.registers(spec.rows * self.wide, self.lanes)
        self.pitch = [body.arg(index) for index in range(4)]
        self.first = [body.let(head * body.arg(4 + index)) for index in range(4)]
        self.masks = body.let(head * body.arg(11)) if spec.mask == "queries" else None

    def emit(self) -> None:
        body, spec = self.body, self.spec
        top = body.registers(self.wide, self.lanes)
        for v in range(self.wide):
            body.put(top, v, body.number(_LOWEST, self.lanes))
        self._blocks(spec.keys, lambda first, count: self._score(first, count, top))
        total = self._exponentials(top)
        factor = [body.let(body.number(1.0, self.lanes) / total[v]) for v in range(self.wide)]
        self._blocks(spec.depth, lambda first, count: self._mix(first, count, factor))

    def _blocks(self, size: int, step: Callable[[Any, int], None]) -> None:
        whole, rest = divmod(size, self.spec.rows)
        if whole:
            with self.body.loop(0, whole) as block:
                step(self.body.let(block * self.spec.rows), self.spec.rows)
        if rest:
            step(self.body.const(whole * self.spec.rows), rest)

    def _product(
        self, count: int, size: int, row: Callable[[Any], list[Any]], weight: Callable[[Any, int], Any]
    ) -> None:
        """Sum ``weight(n, j) * row(n)`` over n into the accumulators of `count` rows j."""
        body = self.body
        zero = body.let(body.number(0.0, self.lanes))
        for index in range(count * self.wide):
            body.put(self.acc, index, zero)
        with body.loop(0, body.rounds(size) if self.spec.few else size) as n:
            body.fence()  # LLVM unrolls the loop for some cores
            x = row(n)
            for j in range(count):
                w = body.let(body.spread(weight(n, j), self.lanes))
                for v in range(self.wide):
                    body.put(self.acc, j * self.wide + v, self.acc[j * self.wide + v] + w * x[v])

    def _score(self, first: Any, count: int, top: Any) -> None:
        body, (q, k, _, _) = self.body, self.first

        def queries(d: Any) -> list[Any]:
            row = body.let(q + d * self.pitch[0] + self.base)
            return [body.let(body.load("q", row + start, self.lanes)) for start in self.run.offsets]

        self._product(count, self.spec.width, queries, lambda d, j: body["k"][k + d * self.pitch[1] + first + j])
        for j in range(count):
            body.fence()
            for v in range(self.wide):
                value = self.acc[j * self.wide + v] * body.number(self.spec.scale, self.lanes)
                if self.spec.mask == "keys":
                    value = value + body.spread(body["m"][first + j], self.lanes)
                elif self.spec.mask == "queries":
                    at = body.let(self.masks + (first + j) * body.arg(10) + self.base + self.run.offsets[v])
                    value = value + body.load("m", at, self.lanes)
                value = body.let(value)
                body.store("s", self._score_at(first + j, v), value, self.lanes)
                body.put(top, v, body.T.max(top[v], value))

    def _score_at(self, key: Any, vector: int) -> Any:
        return self.scores + (key * self.wide + vector) * self.lanes

    def _exponentials(self, top: Any) -> Any:
        """Scores become exp(score - largest); gives their sums."""
        body = self.body
        total = body.registers(self.wide, self.lanes)
        for v in range(self.wide):
            body.put(total, v, body.number(0.0, self.lanes))
        # Where registers are few, an exponential's constants and its input fill them: one vector of queries at a time.
        apart = [[v] for v in range(self.wide)] if self.spec.few else [list(range(self.wide))]
        for vectors in apart:
            self._add_exponentials(vectors, top, total)
        return total

    def _add_exponentials(self, vectors: list[int], top: Any, total: Any) -> None:
        body = self.body
        with body.loop(0, self.spec.keys) as key:
            for v in vectors:
                body.fence()
                at = body.let(self._score_at(key, v))
                value = body.let(body.T.exp(body.load("s", at, self.lanes) - top[v]))
                body.store("s", at, value, self.lanes)
                body.put(total, v, total[v] + value)

    def _mix(self, first: Any, count: int, factor: list[Any]) -> None:
        body, (_, _, values, y) = self.body, self.first

        def shares(key: Any) -> list[Any]:
            return [body.let(body.load("s", self._score_at(key, v), self.lanes)) for v in range(self.wide)]

        start = body.let(values + first * self.pitch[2])
        self._product(count, self.spec.keys, shares, lambda key, j: body["v"][start + j * self.pitch[2] + key])
        for j in range(count):
            row = body.let(y + (first + j) * self.pitch[3] + self.base)
            for v, offset in enumerate(self.run.offsets):
                body.store("y", row + offset, self.acc[j * self.wide + v] * factor[v], self.lanes)
