// Runs one compiled model. index.mjs gives it the model's description; nothing here depends on the model.
// Standard APIs only: browsers, workers, Node and Deno.

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
const CACHE = "edgesparse-weights";
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
  warnOfThreads(options);
  // Asked for first, so that it is on its way while code compiles.
  const weights = openWeights(model, options);
  weights.catch(() => {});
  const variant = options.variant ?? (await pickVariant(model));
  const instance = await instantiate(options.modules?.[variant] ?? model.modules[variant]);
  const code = instance.exports;
  const bytes = await fill(await weights, model, code, options);
  const status = code.create(bytes.byteOffset, bytes.byteLength);
  if (status) throw new Error(`the model cannot be made: ${STATUS[status] ?? status}`);
  return new Session(model, code, variant);
}

class Session {
  #model; #code; #inputs; #outputs;

  constructor(model, code, variant) {
    this.#model = model;
    this.#code = code;
    // Memory never grows after this, so the views stay valid.
    this.#inputs = views(model.inputs, code, code.input);
    this.#outputs = views(model.outputs, code, code.output);
    this.inputs = model.inputs;
    this.outputs = model.outputs;
    this.variant = variant;
    this.threads = 1;
  }

  /** Compute the outputs. With `into`, they are written there and nothing is allocated. */
  async run(inputs, into) {
    return this.runSync(inputs, into);
  }

  /** The same without a promise: it blocks its thread for as long as the model takes. */
  runSync(inputs, into) {
    this.#open();
    const given = checkTensors(this.#model.inputs, inputs, "input");
    const targets = into === undefined ? null : checkTensors(this.#model.outputs, into, "output");
    given.forEach((data, index) => this.#inputs[index].set(data));
    this.#code.run();
    if (targets) {
      targets.forEach((data, index) => data.set(this.#outputs[index]));
      return into;
    }
    const named = Object.keys(this.#model.outputs).map((name, index) => [name, this.#outputs[index].slice()]);
    return Object.fromEntries(named);
  }

  /** One run of its own on the last inputs: milliseconds of each layer, in order. */
  async profile() {
    this.#open();
    const at = this.#code.profile() >>> 0;
    const spent = new BigUint64Array(this.#code.memory.buffer, at, this.#model.layers.length);
    return this.#model.layers.map((layer, index) => ({ ...layer, ms: Number(spent[index]) / 1e6 }));
  }

  /** Let go of the model's memory. Disposing twice is allowed. */
  dispose() {
    this.#code = null;
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
  if (variant !== undefined && !Object.hasOwn(model.modules, variant)) {
    throw new TypeError(`unknown variant "${String(variant)}"; variants are ${Object.keys(model.modules).join(", ")}`);
  }
}

let warned = false;

function warnOfThreads({ threads = 1 }) {
  if (threads === 1 || warned) return;
  warned = true;
  console.warn(`edgesparse: ${threads} threads were asked for, but this package runs on one thread`);
}

function describe(name, { type, dims }) {
  return `${name}: ${type}[${dims.join("x")}]`;
}

/** The typed arrays in the model's order; each is given as such, or as {data, dims}. */
function checkTensors(wanted, given, kind) {
  const list = Object.entries(wanted).map(([name, info]) => describe(name, info)).join(", ");
  if (typeof given !== "object" || given === null) throw new TypeError(`${kind}s must be an object with ${list}`);
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(wanted, name)) throw new TypeError(`there is no ${kind} "${name}"; the model has ${list}`);
  }
  return Object.entries(wanted).map(([name, info]) => checkTensor(name, info, given[name], kind));
}

function checkTensor(name, info, value, kind) {
  const expected = `${kind} "${name}" (${info.type}[${info.dims.join("x")}])`;
  if (value === undefined) throw new TypeError(`${expected} is missing`);
  const array = ARRAYS[info.type];
  const data = value?.data ?? value;
  if (!(data instanceof array)) {
    throw new TypeError(`${expected} must be a ${array.name}, not ${data?.constructor?.name ?? String(data)}`);
  }
  const dims = value?.dims;
  if (dims && (dims.length !== info.dims.length || info.dims.some((dim, axis) => dim !== dims[axis]))) {
    throw new TypeError(`${expected} was given with the shape ${Array.from(dims).join("x")}`);
  }
  const count = size(info);
  if (data.length !== count) throw new TypeError(`${expected} must have ${count} elements, not ${data.length}`);
  return data;
}

const size = ({ dims }) => dims.reduce((product, dim) => product * dim, 1);

function views(infos, code, locate) {
  return Object.values(infos).map((info, index) =>
    new ARRAYS[info.type](code.memory.buffer, locate(index) >>> 0, size(info)));
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

async function instantiate(source) {
  const imports = { es: { now: () => performance.now() * 1e6 } };
  if (source instanceof WebAssembly.Module) return await WebAssembly.instantiate(source, imports);
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) {
    return (await WebAssembly.instantiate(source, imports)).instance;
  }
  const response = await load(source);
  if (response.headers.get("content-type")?.startsWith("application/wasm")) {
    return (await WebAssembly.instantiateStreaming(response, imports)).instance;
  }
  return (await WebAssembly.instantiate(await response.arrayBuffer(), imports)).instance;
}

// -- weights ------------------------------------------------------------------------------------------------------

/** A response for a URL; Node's fetch knows no files. */
async function load(url, signal) {
  const { href, protocol } = new URL(url);
  if (protocol === "file:" && globalThis.process?.versions?.node) {
    const name = "node:fs"; // not a literal, so that bundlers for the web leave it alone
    const { openAsBlob } = await import(/* webpackIgnore: true */ /* @vite-ignore */ name);
    return new Response(await openAsBlob(new URL(href)));
  }
  const response = await fetch(href, { signal });
  if (!response.ok) throw new Error(`cannot load ${href}: ${response.status} ${response.statusText}`);
  return response;
}

async function openWeights(model, options) {
  const source = options.weights ?? model.weights.url;
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) return { response: new Response(source) };
  const key = `${new URL(source).href}#${model.weights.sha256}`;
  const cache = options.cache === false ? null : await openCache(key);
  const known = await cache?.match(cacheKey(model, key)).catch(() => undefined);
  if (known) return { response: known, cache, key, cached: true };
  return { response: await load(source, options.signal), cache, key };
}

/** The browser's cache; null where there is none, or only web addresses could be kept. */
async function openCache(key) {
  if (!/^https?:/.test(key)) return null;
  try {
    return (await globalThis.caches?.open(CACHE)) ?? null;
  } catch {
    return null;
  }
}

function cacheKey(model, key) {
  const url = new URL(key);
  url.hash = "";
  url.searchParams.set("sha256", model.weights.sha256);
  return url.href;
}

/** Stream the weights into the model's memory, and check them there. */
async function fill({ response, cache, key, cached }, model, code, options) {
  const { bytes: total, sha256 } = model.weights;
  const at = code.allocate(total) >>> 0;
  if (!at) throw new Error(`not enough memory for ${total} bytes of weights`);
  const memory = new Uint8Array(code.memory.buffer, at, total);
  let loaded = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (loaded + part.value.length > total) throw new Error(`the weights have more than their ${total} bytes`);
    memory.set(part.value, loaded);
    loaded += part.value.length;
    options.onProgress?.(loaded, total);
  }
  if (loaded !== total) throw new Error(`the weights have ${loaded} bytes, not ${total}: the download broke off`);
  if ((await digest(memory)) !== sha256) {
    await cache?.delete(cacheKey(model, key)).catch(() => false);
    throw new Error("the weights are damaged, or those of another build: their SHA-256 is not the model's");
  }
  // Only what was checked is kept, and only the present build of it.
  if (cache && !cached) void keep(cache, cacheKey(model, key), memory.slice());
  return memory;
}

async function keep(cache, key, bytes) {
  try {
    const path = new URL(key).pathname;
    for (const old of await cache.keys()) if (new URL(old.url).pathname === path) await cache.delete(old);
    await cache.put(key, new Response(bytes));
  } catch {
    // Storage may be full or forbidden: the next visit downloads again.
  }
}

async function digest(bytes) {
  const { subtle } = globalThis.crypto ?? {};
  // Pages that are not served over https have no crypto.subtle.
  const sum = subtle ? new Uint8Array(await subtle.digest("SHA-256", bytes)) : sha256(bytes);
  return Array.from(sum, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** SHA-256 (FIPS 180-4); its constants are the roots of the first primes. */
export function sha256(bytes) {
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((prime) => n % prime)) primes.push(n);
  const fraction = (value) => Math.floor((value - Math.floor(value)) * 2 ** 32);
  const K = Int32Array.from(primes, (prime) => fraction(Math.cbrt(prime)));
  const H = Int32Array.from(primes.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));
  const tail = new Uint8Array(((bytes.length % 64) + 9 > 64 ? 128 : 64));
  const whole = bytes.length - (bytes.length % 64);
  tail.set(bytes.subarray(whole));
  tail[bytes.length - whole] = 0x80;
  new DataView(tail.buffer).setBigUint64(tail.length - 8, BigInt(bytes.length) * 8n);
  const W = new Int32Array(64);
  const turn = (value, by) => (value >>> by) | (value << (32 - by));
  const block = (view, at) => {
    for (let t = 0; t < 16; t++) W[t] = view.getInt32(at + 4 * t);
    for (let t = 16; t < 64; t++) {
      const a = W[t - 15], b = W[t - 2];
      W[t] = W[t - 16] + (turn(a, 7) ^ turn(a, 18) ^ (a >>> 3)) + W[t - 7] + (turn(b, 17) ^ turn(b, 19) ^ (b >>> 10));
    }
    let [a, b, c, d, e, f, g, h] = H;
    for (let t = 0; t < 64; t++) {
      const first = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + K[t] + W[t]) | 0;
      const second = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g; g = f; f = e; e = (d + first) | 0; d = c; c = b; b = a; a = (first + second) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((value, index) => { H[index] += value; });
  };
  const main = new DataView(bytes.buffer, bytes.byteOffset, whole);
  for (let at = 0; at < whole; at += 64) block(main, at);
  for (let at = 0; at < tail.length; at += 64) block(new DataView(tail.buffer), at);
  const result = new Uint8Array(32);
  H.forEach((value, index) => new DataView(result.buffer).setInt32(4 * index, value));
  return result;
}
