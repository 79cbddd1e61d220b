// Runs one compiled model. index.mjs gives it the model's description; nothing here depends on the model.
// Standard APIs only: browsers, workers, Node and Deno.

import { countThreads, sleeper, startThreads } from "./threads.mjs";
import { warmer } from "./warming.mjs";
import { fill, load, openWeights } from "./weights.mjs";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bool: Uint8Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
};
const STATUS = [
  "", "the weights cannot be read", "the weights file is truncated or has extra bytes",
  "the file is not a weights file of this version", "the weights belong to another model",
  "not enough memory", "a null pointer",
];
// How long the two kinds of code are compared, and the rounds of one measurement: about 0.1 ms, above coarse clocks.
const PROBE_MS = 6;
const PROBE_ROUNDS = 1200;

let chosen;

/** The variants that this engine can run, and which of them is the fastest here. */
export async function pickVariant(model) {
  chosen ??= measureVariant(decode(model.probe));
  return await chosen;
}

/** Make a session of a model: see index.d.ts for the options. */
export async function createSession(model, options = {}) {
  checkOptions(model, options);
  const threads = countThreads(model.threads, options.threads);
  // Asked for first, so that it is on its way while code compiles.
  const weights = openWeights(model, options);
  weights.catch(() => {});
  const variant = options.variant ?? (await pickVariant(model));
  // Cut into as many strips as there are threads, or a few more.
  const name = threads > 1 ? `${variant}.threads${model.strips.find((strips) => strips >= threads)}` : variant;
  const module = await compile(options.modules?.[name] ?? model.modules[name]);
  const { code, memory } = await instantiate(module, model.pages[name] ?? 0);
  await make(model, code, memory, await weights, options);
  const stop = threads > 1 ? await startThreads(threads, module, memory, code) : null;
  if (stop) code.threads(threads);
  return new Session(model, code, memory, { variant, threads: stop ? threads : 1, stop });
}

/** Make the model in its memory: when its weights are there, or as soon as the first ones can be warmed up with. */
async function make(model, code, memory, weights, options) {
  const { bytes } = model.weights;
  const at = code.allocate(bytes) >>> 0;
  if (!at) throw new Error(`not enough memory for ${bytes} bytes of weights`);
  let made = false;
  const create = () => {
    if (made) return;
    const status = code.create(at, bytes);
    if (status) throw new Error(`the model cannot be made: ${STATUS[status] ?? status}`);
    made = true;
  };
  const warm = warmer(code, bytes, create);
  await fill(weights, model, () => new Uint8Array(memory.buffer, at, bytes), warm, options);
  create();
}

class Session {
  #code; #memory; #inputs; #outputs; #layers; #stop;

  constructor(model, code, memory, { variant, threads, stop }) {
    this.#code = code;
    this.#memory = memory;
    // Memory never grows after this, so the views stay valid.
    this.#inputs = portsOf(model.inputs, "input", memory, code.input);
    this.#outputs = portsOf(model.outputs, "output", memory, code.output);
    this.#layers = model.layers;
    this.#stop = stop;
    this.inputs = model.inputs;
    this.outputs = model.outputs;
    this.variant = variant;
    this.threads = threads;
  }

  /** Compute the outputs. With `into`, they are written there. */
  async run(inputs, into) {
    return this.runSync(inputs, into);
  }

  /** The same without a promise: it blocks its thread for as long as the model takes. With `into`, it allocates nothing. */
  runSync(inputs, into) {
    this.#open();
    checkTensors(this.#inputs, inputs);
    if (into !== undefined) checkTensors(this.#outputs, into);
    for (let at = 0; at < this.#inputs.length; at++) {
      const { name, view } = this.#inputs[at];
      view.set(dataOf(inputs[name]));
    }
    this.#code.run();
    if (into === undefined) return Object.fromEntries(this.#outputs.map(({ name, view }) => [name, view.slice()]));
    for (let at = 0; at < this.#outputs.length; at++) {
      const { name, view } = this.#outputs[at];
      dataOf(into[name]).set(view);
    }
    return into;
  }

  /** One run of its own on the last inputs, on one thread: milliseconds of each layer, in order. */
  async profile() {
    this.#open();
    const at = this.#code.profile() >>> 0;
    const spent = new BigUint64Array(this.#memory.buffer, at, this.#layers.length);
    return this.#layers.map((layer, index) => ({ ...layer, ms: Number(spent[index]) / 1e6 }));
  }

  /** Let go of the model's memory, and end its threads. Disposing twice is allowed. */
  dispose() {
    if (this.#stop) this.#code.threads(1);
    this.#stop?.();
    this.#code = this.#memory = this.#stop = null;
    this.#inputs = this.#outputs = [];
  }

  #open() {
    if (!this.#code) throw new Error("the session was disposed of; create another one");
  }
}

// -- what users may get wrong -------------------------------------------------------------------------------------

const OPTIONS = ["threads", "variant", "weights", "modules", "cache", "onProgress", "signal"];

function checkOptions(model, options) {
  if (typeof options !== "object" || options === null) throw new TypeError("createSession takes an object of options");
  for (const name of Object.keys(options)) {
    if (!OPTIONS.includes(name)) throw new TypeError(`unknown option "${name}"; options are ${OPTIONS.join(", ")}`);
  }
  const { threads, variant } = options;
  if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1)) {
    throw new TypeError(`threads must be a whole number from 1 on, not ${String(threads)}`);
  }
  const { variants } = model;
  if (variant !== undefined && !variants.includes(variant)) {
    throw new TypeError(`unknown variant "${String(variant)}"; variants are ${variants.join(", ")}`);
  }
}

const textOf = ({ type, dims }) => `${type}[${dims.join("x")}]`;

/** Inputs or outputs in the model's order, each with its place in memory. */
function portsOf(infos, kind, memory, locate) {
  return Object.entries(infos).map(([name, info], index) => {
    const count = info.dims.reduce((product, dim) => product * dim, 1);
    const view = new ARRAYS[info.type](memory.buffer, locate(index) >>> 0, count);
    return { name, kind, dims: info.dims, text: textOf(info), view };
  });
}

/** The typed array of a tensor, which is given as such or as {data, dims}. */
const dataOf = (value) => value?.data ?? value;

/** Refuse what does not fit. Called at each run: it allocates nothing unless it throws. */
function checkTensors(ports, given) {
  if (typeof given !== "object" || given === null) {
    throw new TypeError(`${ports[0]?.kind ?? "tensor"}s must be an object with ${listOf(ports)}`);
  }
  for (const name in given) {
    let known = false;
    for (let at = 0; at < ports.length; at++) known ||= ports[at].name === name;
    if (!known) throw new TypeError(`there is no ${ports[0]?.kind ?? "tensor"} "${name}"; the model has ${listOf(ports)}`);
  }
  for (let at = 0; at < ports.length; at++) checkTensor(ports[at], given[ports[at].name]);
}

const listOf = (ports) => ports.map(({ name, text }) => `${name}: ${text}`).join(", ");

function refuse({ kind, name, text }, problem) {
  throw new TypeError(`${kind} "${name}" (${text}) ${problem}`);
}

function checkTensor(port, value) {
  if (value === undefined) refuse(port, "is missing");
  const data = dataOf(value), array = port.view.constructor;
  if (!(data instanceof array)) refuse(port, `must be a ${array.name}, not ${data?.constructor?.name ?? String(data)}`);
  const dims = value.dims;
  if (dims) {
    let same = dims.length === port.dims.length;
    for (let axis = 0; same && axis < dims.length; axis++) same = dims[axis] === port.dims[axis];
    if (!same) refuse(port, `was given with the shape ${Array.from(dims).join("x")}`);
  }
  if (data.length !== port.view.length) refuse(port, `must have ${port.view.length} elements, not ${data.length}`);
}

// -- code ---------------------------------------------------------------------------------------------------------

const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/**
 * Relaxed SIMD where the engine knows it, unless it is slower there: some emulate its multiply-add. Optimised code arrives
 * in the background while both loops run in turn, so the least time of each counts, and a verdict against it takes longer.
 */
async function measureVariant(probe) {
  if (!WebAssembly.validate(probe)) return "simd";
  const { instance } = await WebAssembly.instantiate(probe);
  const best = { plain: Infinity, relaxed: Infinity };
  const slower = () => best.relaxed > best.plain * 1.2;
  const started = performance.now();
  for (let spent = 0; spent < (slower() ? 5 * PROBE_MS : PROBE_MS); spent = performance.now() - started) {
    for (const name of ["plain", "relaxed"]) {
      const before = performance.now();
      instance.exports[name](PROBE_ROUNDS);
      best[name] = Math.min(best[name], performance.now() - before);
    }
  }
  return slower() ? "simd" : "relaxed";
}

async function compile(source) {
  if (source instanceof WebAssembly.Module) return source;
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) return await WebAssembly.compile(source);
  const response = await load(source);
  if (response.headers.get("content-type")?.startsWith("application/wasm")) {
    return await WebAssembly.compileStreaming(response);
  }
  return await WebAssembly.compile(await response.arrayBuffer());
}

/** An instance, with memory of its own or, where threads are to share it, with `pages` of 64 KiB that never grow. */
async function instantiate(module, pages) {
  const now = () => performance.now() * 1e6;
  if (!pages) {
    const { exports: code } = await WebAssembly.instantiate(module, { es: { now } });
    return { code, memory: code.memory };
  }
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  const { exports: code } = await WebAssembly.instantiate(module, { env: { memory }, es: { now, sleep: sleeper(memory) } });
  return { code, memory };
}
