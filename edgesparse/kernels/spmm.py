"""The product of a packed weight matrix with a band of pixels: 1x1 convolution, panels of k x k ones, fully connected.

    y[g*N + j][p] = epilogue(b[g*N + j] + sum over n of w[n][j] * x[column[n]][p])     n from start[g] to start[g + 1]

`N` output channels form a group and share each non-zero's input channel, so that every activation vector that is
loaded meets `N` weights (SparseByteNN, arXiv 2310.19509; Fast Sparse ConvNets, arXiv 1911.09723). Dense layers are the
same kernel without the column table. Loops: tiles of pixels, groups, non-zeros, with the whole tile in registers. Tiles
are outermost where a tile's columns fit into L1: they stay there while the weights stream. Where they do not, columns
of sparse layers are fetched some non-zeros ahead; or groups are outermost, and a group's weights are then read once and
stay in L1 over all tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgesparse.kernels.builder import LINE, Body, kernel
from edgesparse.kernels.epilogue import Epilogue
from edgesparse.kernels.tiles import Cut, Run, cut_pixels, join_tail

#: Place of the epilogue's scale in the arguments.
AFFINE_AT = 4

Sums = Mapping[tuple[int, int], Any]
"""Of single pixels: for each part of the group (first row, lanes) a vector for each pixel."""


@dataclass(frozen=True)
class Spmm:
    """One instance of the kernel.

    Attributes
    ----------
    group:
        N, output channels that share a non-zero (a dense layer's block of output channels).
    pixels:
        Pixels of the band.
    vectors:
        Vectors of pixels in a tile; the tile takes ``group * vectors`` accumulators.
    lanes:
        float32 values in a vector.
    dense:
        All input channels in order, without a column table.
    epilogue:
        Activation and residual.
    by_lane:
        Load a group's weights as vectors and multiply by their lanes (ARM has that instruction), instead of spreading
        each weight from memory.
    groups_outer:
        Groups are the outermost loop, not tiles of pixels.
    ahead:
        Bytes by which weights are fetched before they are needed, 0 for not at all. Processors follow a stream of
        weights by themselves, but only to the end of its page.
    columns_ahead:
        Non-zeros by which pixels are fetched before they are needed, 0 for not at all. No processor can guess which
        input channel comes next. The column table must have so many entries more, of any channel.
    joined:
        Single pixels that are left over are spread over the tiles, not done in a pass of their own.
    few:
        See `Target.few`.

    Pointers: x, w ``[nnz][N]``, start ``[G + 1]``, column ``[nnz]`` (element offsets into x), b ``[G*N]``, residual
    (where the epilogue has one), y. For a dense layer start and column are absent and w is ``[G][K][N]``.
    Arguments: pitch of y, pitch of the residual, pitch of x and K (of dense layers), then the epilogue's scale and
    shift. Range: groups.
    """

    group: int
    pixels: int
    vectors: int
    lanes: int
    dense: bool
    epilogue: Epilogue
    by_lane: bool = False
    groups_outer: bool = False
    ahead: int = 0
    columns_ahead: int = 0
    joined: bool = False
    few: bool = False

    @property
    def symbol(self) -> str:
        pattern = (f"dense{self.group}" if self.dense else f"g{self.group}") + ("l" if self.by_lane else "")
        pattern += ("o" if self.groups_outer else "") + (f"a{self.ahead}" if self.ahead else "")
        pattern += (f"c{self.columns_ahead}" if self.columns_ahead else "") + ("j" if self.joined else "")
        pattern += "n" if self.few else ""
        return f"es_spmm_f32_{pattern}_{self.pixels}px_{self.vectors}x{self.lanes}_{self.epilogue.name}"

    @property
    def stores(self) -> int:
        """How many places a result is stored in."""
        return 1

    @property
    def residuals(self) -> int:
        """How many values are added to a result as it is stored."""
        return int(self.epilogue.residual != "none")

    @property
    def tail_limit(self) -> int:
        """Pixels left over that are done one by one: where each fills a good part of a vector, or, joined to a tile,
        costs less of its time than a vector that overlaps would.
        """
        most = min(4, self.lanes // 4)
        if self.joined:
            return min(most, self.group // 2)
        return most if self.group * 2 >= self.lanes else 0

    @property
    def modest(self) -> Iterator[Spmm]:
        """The same with ever fewer registers, for the same arguments; see `edgesparse.building.registers`."""
        if self.by_lane:
            if not self.few:
                yield replace(self, few=True)
            for vectors in range(self.vectors - 1, 0, -1):
                yield replace(self, vectors=vectors, few=True, joined=False)

    def build(self) -> Any:
        pointers = [("x", "float32"), ("w", "float32")]
        if not self.dense:
            pointers += [("start", "int32"), ("column", "int32")]
        pointers += [("b", "float32")]
        if self.epilogue.residual != "none":
            pointers += [("r", "float32")]
        return kernel(self.symbol, [*pointers, ("y", "float32")], self._body)

    @property
    def cut(self) -> Cut:
        """How the band's pixels are cut into tiles."""
        cut = cut_pixels(self.pixels, self.lanes, self.vectors, self.tail_limit)
        return join_tail(cut) if self.joined else cut

    @property
    def live(self) -> int:
        """Vector registers that a tile takes at most: sums, inputs, and the weights of a row and of the group."""
        weights = 1 + len(_split(self.group, self.lanes))
        found = (
            (self.group + 1) * len(run.offsets) + (weights + run.singles * (weights - 1) if run.singles else 1)
            for run in self.cut.runs
        )
        return max(found, default=0)

    def _body(self, body: Body) -> None:
        cut = self.cut
        tails = [
            (cut.tail_start + first, min(_TAIL_PIXELS, cut.tail - first)) for first in range(0, cut.tail, _TAIL_PIXELS)
        ]
        if not self.groups_outer:
            for run in cut.runs:
                with body.loop(*self._rounds(body, run)) as tile, body.loop(body.begin, body.end) as group:
                    self._tile(body, run, tile, group)
            for first, count in tails:
                with body.loop(body.begin, body.end) as group:
                    self._pixels(body, first, count, group)
            return
        with body.loop(body.begin, body.end) as group:
            for run in cut.runs:
                with body.loop(*self._rounds(body, run)) as tile:
                    self._tile(body, run, tile, group)
            for first, count in tails:
                self._pixels(body, first, count, group)

    def _rounds(self, body: Body, run: Run) -> tuple[Any, Any]:
        """The run's tiles. LLVM for ARM must not know how many: it would unroll a few, or keep addresses for one alone,
        and spill.
        """
        if self.few:
            return body.let(body.T.shift_right(body.begin, body.const(_BITS))), run.repeat
        return 0, body.unknown(run.repeat) if self.by_lane else run.repeat

    def _tile(self, body: Body, run: Run, tile: Any, group: Any) -> None:
        """One group's tile, with vectors along the pixels, and its single pixels, with vectors along the group."""
        wide = len(run.offsets)
        acc = body.registers(self.group * wide, self.lanes)
        base = body.let(tile * run.step)
        for j in range(self.group):
            bias = body.let(body.spread(body["b"][group * self.group + j], self.lanes))
            for v in range(wide):
                body.put(acc, j * wide + v, bias)
        singles = [body.let(tile * run.singles + (run.first_single + p)) for p in range(run.singles)]
        sums = self._sums(body, group, len(singles))

        def multiply(x_offset: Any, w_offset: Any) -> None:
            if self.by_lane:  # pixels one after another: one vector of them is enough beside sums and weights
                weights = list(self._weights(body, w_offset))
                for v, start in enumerate(run.offsets):
                    pixels = body.let(body.load("x", x_offset + base + start, self.lanes))
                    for j, w in weights:
                        body.put(acc, j * wide + v, acc[j * wide + v] + w * pixels)
            else:
                x = [body.let(body.load("x", x_offset + base + start, self.lanes)) for start in run.offsets]
                self._ahead(body, w_offset)
                for j, w in self._weights(body, w_offset):
                    for v in range(wide):
                        body.put(acc, j * wide + v, acc[j * wide + v] + w * x[v])
            single = [body.let(body["x"][x_offset + pixel]) for pixel in singles]
            self._add(body, sums, single, w_offset)

        def fetch(x_offset: Any) -> None:
            for start in [*(base + offset for offset in run.offsets), *singles[:1]]:
                body.prefetch("x", x_offset + start)

        # A deep product's loop is worth unrolling; one that is very short LLVM for ARM would unroll further, and spill.
        short = self.by_lane and wide == 1 and self.group == self.lanes and not self.dense
        steps = 2 if self.columns_ahead or short else 1
        self._over_columns(body, group, *[multiply] * steps, fetch=fetch, tile=tile)
        for j in range(self.group):
            for v, start in enumerate(run.offsets):
                self._finish(body, group * self.group + j, base + start, acc[j * wide + v], self.lanes)
        self._finish_pixels(body, group, singles, sums)

    def _ahead(self, body: Body, offset: Any) -> None:
        """Fetch the weights that come a while after those at `offset`: one hint for each cache line."""
        if self.ahead:
            for line in range(0, self.group, LINE):
                body.prefetch("w", offset + (self.ahead // 4 + line))

    def _weights(self, body: Body, offset: Any) -> Iterator[tuple[int, Any]]:
        """Each row of the group with its weight in all lanes."""
        if not self.by_lane or self.group % self.lanes:
            for j in range(self.group):
                yield j, body.let(body.spread(body["w"][offset + j], self.lanes))
            return
        for first in range(0, self.group, self.lanes):
            weights = body.let(body.load("w", offset + first, self.lanes))
            for lane in range(self.lanes):
                yield first + lane, body.let(body.splat(weights, lane, self.lanes))

    def _sums(self, body: Body, group: Any, count: int, *, zero: bool = False) -> Sums:
        """Sums of `count` single pixels, begun with the bias."""
        sums = {part: body.registers(count, part[1]) for part in _split(self.group, self.lanes)} if count else {}
        for (at, lanes), acc in sums.items():
            start = body.number(0.0, lanes) if zero else body.load("b", group * self.group + at, lanes)
            start = body.let(start)
            for p in range(count):
                body.put(acc, p, start)
        return sums

    def _add(self, body: Body, sums: Sums, pixels: list[Any], w_offset: Any) -> None:
        """Add a non-zero's part to the sums of single pixels."""
        for (at, lanes), acc in sums.items():
            w = body.let(body.load("w", w_offset + at, lanes))
            for p, x in enumerate(pixels):
                body.put(acc, p, acc[p] + w * body.spread(x, lanes))

    def _pixels(self, body: Body, first: int, count: int, group: Any) -> None:
        """Single pixels of one group, with vectors along its output channels."""
        parts = _split(self.group, self.lanes)
        streams = max(1, _IN_FLIGHT // (count * len(parts)))
        if self.few:
            streams = min(streams, 2)
        if self.by_lane and self.dense and self.pixels > 1 and len(parts) >= _IN_FLIGHT // 2:
            streams = 1  # two would need more addresses than ARM has registers for beside those of the tiles
        sums = [self._sums(body, group, count, zero=s > 0) for s in range(streams)]

        def multiply(stream: int) -> Callable[[Any, Any], None]:
            def step(x_offset: Any, w_offset: Any) -> None:
                x = [body.let(body["x"][x_offset + first + p]) for p in range(count)]
                if self.pixels == 1:  # else tiles have fetched the weights
                    self._ahead(body, w_offset)
                self._add(body, sums[stream], x, w_offset)
                if self.by_lane and not self.few and stream == streams - 1:
                    # LLVM unrolls the loop for in-order cores: no round is mixed with the next, where it would spill
                    body.hold(sums[stream][parts[-1]][count - 1])

            return step

        self._over_columns(body, group, *[multiply(s) for s in range(streams)])
        for other in sums[1:]:
            for part, acc in sums[0].items():
                for p in range(count):
                    body.put(acc, p, acc[p] + other[part][p])
        self._finish_pixels(body, group, [body.const(first + p) for p in range(count)], sums[0])

    def _finish_pixels(self, body: Body, group: Any, pixels: list[Any], sums: Sums) -> None:
        """Epilogue and stores of single pixels."""
        if not pixels:
            return
        spill = body.scratch(max(self.group, 2))
        for p, pixel in enumerate(pixels):
            for (at, lanes), acc in sums.items():
                body.T.buffer_store(spill, acc[p], [body.index(at, lanes)])
            for j in range(self.group):
                self._finish(body, group * self.group + j, pixel, spill[j], 1)

    def _over_columns(
        self,
        body: Body,
        group: Any,
        *steps: Callable[[Any, Any], None],
        fetch: Callable[[Any], None] | None = None,
        tile: Any | None = None,
    ) -> None:
        """Run `steps` in turn over the group's non-zeros: each gets the offset into x and the one into w.

        `fetch` gets the offset into x of a non-zero that comes `columns_ahead` later.
        """
        if self.dense:
            pitch, depth = body.arg(2), body.arg(3)
            first = body.let(group * depth)
            # There is one at least: LLVM makes no second loop over tiles for none, which would have to spill.
            if self.few and tile is None:  # nor one over groups for none, or for a single one
                depth = body.let(depth + body.T.shift_right(group, body.const(_BITS)))
            count = body.let(body.T.max(depth, body.const(1))) if self.by_lane else depth
        else:
            first = body.let(body["start"][group])
            last = body.let(body["start"][group + 1])
            count = body.let(last - first)
            if self.few and tile is not None:  # as if it were another in every tile: LLVM makes no loop for none
                count = body.let(count + body.T.shift_right(tile, body.const(_BITS)))

        def visit(index: Any, step: Callable[[Any, Any], None]) -> None:
            if fetch and self.columns_ahead:
                fetch(body.let(body["column"][first + index + self.columns_ahead]))
            x_offset = body.let(index * pitch) if self.dense else body.let(body["column"][first + index])
            step(x_offset, body.let((first + index) * self.group))

        if len(steps) == 1:
            with body.loop(0, count) as index:
                visit(index, steps[0])
            return
        whole = body.let(count // len(steps))
        with body.loop(0, whole) as block:
            for s, step in enumerate(steps):
                visit(block * len(steps) + s, step)
        with body.loop(whole * len(steps), count) as index:
            visit(index, steps[0])

    def _finish(self, body: Body, row: Any, pixel: Any, value: Any, lanes: int) -> None:
        residual = None
        if self.epilogue.residual != "none":
            residual = body.let(body.load("r", row * body.arg(1) + pixel, lanes))
        result = self.epilogue.apply(body, value, lanes, residual, AFFINE_AT)
        body.store("y", row * body.arg(0) + pixel, result, lanes)


#: Groups and tiles are fewer than two to this: what is left of their index behind it is nothing.
_BITS = 24
#: Single pixels done at a time, and independent sums to keep in flight (latency times throughput of FMA).
_TAIL_PIXELS = 4
_IN_FLIGHT = 8


def _split(group: int, lanes: int) -> list[tuple[int, int]]:
    """Cut `group` output channels into vectors (start, lanes): full ones, then halves, down to single lanes."""
    parts, at = [], 0
    while at < group:
        while lanes > group - at:
            lanes //= 2
        parts.append((at, lanes))
        at += lanes
    return parts
