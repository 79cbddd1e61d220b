"""The texts of a web bundle: what npm, TypeScript and a reader need to know of one model. Pure functions.

The code that runs is `runtimes/web/runtime.mjs`, the same for every model; `index.mjs` gives it the description made
here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgesparse.artifacts.manifest import TensorInfo

#: JavaScript's array for each element type, and TypeScript's name of it.
ARRAYS: Mapping[str, str] = {
    "float32": "Float32Array",
    "float64": "Float64Array",
    "float16": "Uint16Array",
    "bool": "Uint8Array",
    "int8": "Int8Array",
    "int16": "Int16Array",
    "int32": "Int32Array",
    "int64": "BigInt64Array",
    "uint8": "Uint8Array",
    "uint16": "Uint16Array",
    "uint32": "Uint32Array",
    "uint64": "BigUint64Array",
}


@dataclass(frozen=True)
class Description:
    """What the texts are made of.

    Attributes
    ----------
    name:
        Of the npm package.
    inputs, outputs:
        The signature.
    modules:
        File name of each variant's code, and of its code for threads under the variant's name with ".threads" and the
        number of strips.
    weights_sha256, weights_bytes:
        Of the file `weights.bin`.
    part_bytes, parts:
        The SHA-256 of each part of `weights.bin`, all but the last of so many bytes.
    probe:
        The module that tells whether and how fast relaxed SIMD is.
    layers:
        Name and kind of each layer, for profiles.
    density:
        Share of non-zero weights in the layers that have weights.
    threads, variants, strips:
        The most threads, the names of the variants, and the numbers of strips that there are modules for.
    pages:
        The pages of 64 KiB of shared memory that each module for threads needs.
    """

    name: str
    version: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    modules: Mapping[str, str]
    weights_sha256: str
    weights_bytes: int
    part_bytes: int
    parts: Sequence[str]
    probe: bytes
    layers: Sequence[Mapping[str, Any]]
    density: float
    threads: int
    variants: Sequence[str]
    strips: Sequence[int]
    pages: Mapping[str, int]


def package_json(it: Description, files: Sequence[str]) -> str:
    """npm's description of the package."""
    return _json(
        {
            "name": it.name,
            "version": it.version,
            "description": "A sparse neural network compiled to WebAssembly by edgesparse.",
            "license": "SEE LICENSE IN README.md",
            "type": "module",
            "exports": {
                ".": {"types": "./index.d.ts", "default": "./index.mjs"},
                **{f"./{name}": f"./{name}" for name in (*it.modules.values(), "weights.bin", "manifest.json")},
                "./package.json": "./package.json",
            },
            "types": "./index.d.ts",
            "files": list(files),
            "sideEffects": False,
            "engines": {"node": ">=20"},
        }
    )


def index_mjs(it: Description) -> str:
    """The entry: the model's description, with addresses that bundlers recognise."""
    modules = "".join(
        f"    {json.dumps(key)}: new URL({json.dumps('./' + name)}, import.meta.url),\n"
        for key, name in it.modules.items()
    )
    return f"""// Made by edgesparse. Do not edit.
import {{ createSession as create, pickVariant as pick }} from "./runtime.mjs";

const model = {{
  inputs: {_ports(it.inputs)},
  outputs: {_ports(it.outputs)},
  layers: {json.dumps([{"name": str(x.get("name")), "kind": str(x.get("kind"))} for x in it.layers])},
  threads: {it.threads},
  variants: {json.dumps(list(it.variants))},
  strips: {json.dumps(list(it.strips))},
  pages: {json.dumps(dict(it.pages))},
  modules: {{
{modules}  }},
  weights: {{
    url: new URL("./weights.bin", import.meta.url),
    bytes: {it.weights_bytes},
    sha256: "{it.weights_sha256}",
    partBytes: {it.part_bytes},
    parts: {json.dumps(list(it.parts))},
  }},
  probe: "{base64.b64encode(it.probe).decode()}",
}};

export const createSession = (options) => create(model, options);
export const pickVariant = () => pick(model);
export const {{ inputs, outputs, layers }} = model;
"""


def index_dts(it: Description) -> str:
    """The types: this model's names and shapes as literals."""
    variants = " | ".join(map(json.dumps, it.variants))
    modules = " | ".join(map(json.dumps, it.modules))
    return f"""// Made by edgesparse. Do not edit.

/** A tensor: its elements in row-major order, or these with the shape, which is checked. */
export type Tensor<A, D extends readonly number[]> = A | {{ readonly data: A; readonly dims?: D }};

/** The model's inputs by name. */
export interface Inputs {{
{_members(it.inputs, "Tensor<{array}, {dims}>")}}}

/** The model's outputs by name. */
export interface Outputs {{
{_members(it.outputs, "{array}")}}}

/** Names, element types and shapes of the inputs. */
export declare const inputs: {{
{_members(it.inputs, '{{ readonly type: "{type}"; readonly dims: {dims} }}')}}};

/** Names, element types and shapes of the outputs. */
export declare const outputs: {{
{_members(it.outputs, '{{ readonly type: "{type}"; readonly dims: {dims} }}')}}};

export interface Layer {{
  readonly name: string;
  readonly kind: string;
}}

/** The model's layers in the order of profiles. */
export declare const layers: readonly Layer[];

export type Variant = {variants};

/** Variants, and their code for up to so many threads. */
export type Module = {modules};

export interface Options {{
  /**
   * Threads to run on, at most {it.threads}. By default half of the cores in a page that is cross-origin isolated, else
   * 1. Where threads that were asked for are not to be had, there is one warning, and one thread.
   */
  threads?: number;
  /** Which code to run; by default the fastest that this engine runs, found out in a few milliseconds. */
  variant?: Variant;
  /** Where the weights are, or the weights; by default beside this module. */
  weights?: string | URL | ArrayBuffer | Uint8Array;
  /** Where the code is, or the code; by default beside this module. */
  modules?: Partial<Record<Module, string | URL | BufferSource | WebAssembly.Module>>;
  /** Keep the weights in the Cache API where there is one; true by default. */
  cache?: boolean;
  /** Told how many bytes of the weights have come. */
  onProgress?: (loaded: number, total: number) => void;
  /** Ends the download. */
  signal?: AbortSignal;
}}

export interface Session {{
  readonly inputs: typeof inputs;
  readonly outputs: typeof outputs;
  readonly variant: Variant;
  readonly threads: number;
  /** Compute the outputs. With `into`, they are written there. */
  run(inputs: Inputs, into?: Outputs): Promise<Outputs>;
  /** The same without a promise: it blocks its thread as long as the model takes. With `into`, it allocates nothing. */
  runSync(inputs: Inputs, into?: Outputs): Outputs;
  /** One run of its own on the last inputs, on one thread: milliseconds of each layer, in order. */
  profile(): Promise<Array<Layer & {{ readonly ms: number }}>>;
  /** Let go of the model's memory, and end its threads. */
  dispose(): void;
}}

/** Load the model. Throws a TypeError for options it does not know, an Error for files that are missing or damaged. */
export declare function createSession(options?: Options): Promise<Session>;

/** The variant that `createSession` takes by itself. */
export declare function pickVariant(): Promise<Variant>;
"""


def readme(it: Description) -> str:
    """The package's README."""
    feeds = ", ".join(f"{json.dumps(info.name)}: {_example(info)}" for info in it.inputs)
    rows = "".join(
        f"| {kind} | `{info.name}` | {ARRAYS[info.dtype]} | {' x '.join(map(str, info.shape)) or 'scalar'} |\n"
        for kind, infos in (("input", it.inputs), ("output", it.outputs))
        for info in infos
    )
    threads = f"at most {it.threads}: `createSession({{ threads }})`" if it.threads > 1 else "this package has one"
    return f"""# {it.name}

One neural network, compiled to WebAssembly by [edgesparse](https://pypi.org/project/edgesparse/). No other runtime is
needed. {it.weights_bytes / 1e6:.1f} MB of weights; {it.density:.0%} of the weights are not zero.

## Quick start

```js
import {{ createSession }} from {json.dumps(it.name)};

const session = await createSession();
const outputs = await session.run({{ {feeds} }});
console.log(outputs[{json.dumps(it.outputs[0].name if it.outputs else "")}]);
session.dispose();
```

|   | name | array | shape |
| - | ---- | ----- | ----- |
{rows}
Wrong names, lengths and types throw a `TypeError` that says what was expected. `session.profile()` tells the
milliseconds of each layer. `session.run(inputs, outputs)` writes into arrays that you keep.

## Where it runs

Browsers with WebAssembly SIMD (Chrome and Edge 91, Firefox 89, Safari 16.4 or newer), web workers, Node 20 or newer,
Deno. Bundlers that know `new URL("..", import.meta.url)`, as Vite does, find the files by themselves; with esbuild,
copy `*.wasm`, `weights.bin` and `worker.mjs` beside the output. `run` occupies its thread: create the session in a
worker to keep a page responsive.

The weights are streamed, checked against their SHA-256 and kept in the Cache API. Two variants of the code come along:
plain SIMD and relaxed SIMD; the faster one on the visitor's engine is picked in a few milliseconds.

## Headers and threads

One thread needs no special headers. Serve `.wasm` as `application/wasm`, so that it compiles while it loads. Threads
({threads}), and finer clocks for `profile()`, need a page that is
cross-origin isolated: serve it and its files with

    Cross-Origin-Opener-Policy: same-origin
    Cross-Origin-Embedder-Policy: require-corp

## License

The weights are under the terms of the model they were compiled from. The code is made by edgesparse (Apache-2.0).
"""


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _ports(infos: Sequence[TensorInfo]) -> str:
    return json.dumps({info.name: {"type": info.dtype, "dims": list(info.shape)} for info in infos})


def _members(infos: Sequence[TensorInfo], form: str) -> str:
    lines = []
    for info in infos:
        dims = f"readonly [{', '.join(map(str, info.shape))}]"
        text = form.format(array=ARRAYS[info.dtype], dims=dims, type=info.dtype)
        lines.append(f"  readonly {json.dumps(info.name)}: {text};\n")
    return "".join(lines)


def _example(info: TensorInfo) -> str:
    count = 1
    for dim in info.shape:
        count *= dim
    return f"new {ARRAYS[info.dtype]}({count})"
