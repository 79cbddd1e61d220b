// Does what edgesparse asks of a JavaScript engine: loads models, runs them, tells times. The same in Node and in a page.
// Usage: node host.mjs BASE, or import it in a page that BASE serves: `await host(BASE)`.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bool: Uint8Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
};

function toText(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

const fromText = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;

function toArrays(tensors) {
  return Object.fromEntries(
    Object.entries(tensors).map(([name, { dtype, data }]) => [name, new ARRAYS[dtype](fromText(data))]));
}

const zerosOf = (ports) => Object.fromEntries(Object.entries(ports).map(([name, { type, dims }]) =>
  [name, new ARRAYS[type](dims.reduce((product, dim) => product * dim, 1))]));

/** A bundle. */
class Ours {
  static async load({ url, options }) {
    const { createSession } = await import(url);
    return new Ours(await createSession(options));
  }

  constructor(session) {
    this.session = session;
    this.told = { variant: session.variant, threads: session.threads };
  }

  feed(tensors) {
    this.feeds = toArrays(tensors);
    this.into = zerosOf(this.session.outputs);
  }

  async run() {
    await this.session.run(this.feeds, this.into);
  }

  outputs() {
    return this.into;
  }

  async profile() {
    return (await this.session.profile()).map(({ name, ms }) => [name, Math.round(ms * 1e6)]);
  }

  close() {
    this.session.dispose();
  }
}

/** An ONNX model in onnxruntime-web. */
class Ort {
  static async load({ url, model, threads }) {
    const found = await import(url);
    const ort = found.default?.InferenceSession ? found.default : found;
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.proxy = false;
    ort.env.logLevel = "error";
    const bytes = await bytesOf(model);
    return new Ort(ort, await ort.InferenceSession.create(bytes, {
      executionProviders: ["wasm"], graphOptimizationLevel: "all",
    }));
  }

  constructor(ort, session) {
    this.ort = ort;
    this.session = session;
    this.told = { version: ort.env.versions?.web ?? ort.env.versions?.common };
  }

  feed(tensors) {
    this.feeds = Object.fromEntries(Object.entries(toArrays(tensors)).map(([name, data]) =>
      [name, new this.ort.Tensor(tensors[name].dtype, data, tensors[name].dims)]));
  }

  async run() {
    this.found = await this.session.run(this.feeds);
  }

  outputs() {
    return Object.fromEntries(Object.entries(this.found).map(([name, tensor]) => [name, tensor.data]));
  }

  async close() {
    await this.session.release();
  }
}

async function bytesOf(url) {
  if (url.startsWith("file:")) {
    const { readFile } = await import("node:fs/promises");
    return new Uint8Array(await readFile(new URL(url)));
  }
  return new Uint8Array(await (await fetch(url)).arrayBuffer());
}

const models = new Map();

const DEEDS = {
  async hello() {
    return {
      engine: globalThis.process?.versions?.v8 ? `Node ${process.versions.node}, V8 ${process.versions.v8}` : navigator.userAgent,
      isolated: globalThis.crossOriginIsolated ?? null,
    };
  },
  async load(job) {
    const started = performance.now();
    const made = await (job.kind === "ort" ? Ort : Ours).load(job);
    models.set(job.id, made);
    return { seconds: (performance.now() - started) / 1e3, ...made.told };
  },
  async feed({ id, tensors }) {
    models.get(id).feed(tensors);
    return {};
  },
  /** Seconds of each of `count` runs; with a `group`, the mean over so many runs each: clocks of pages are coarse. */
  async run({ id, count, group = 1 }) {
    const model = models.get(id), seconds = [];
    for (let index = 0; index < count; index++) {
      const started = performance.now();
      for (let each = 0; each < group; each++) await model.run();
      seconds.push((performance.now() - started) / 1e3 / group);
    }
    return { seconds };
  },
  async outputs({ id }) {
    return { tensors: Object.fromEntries(Object.entries(models.get(id).outputs()).map(([name, data]) => [name, toText(data)])) };
  },
  async profile({ id }) {
    return { layers: await models.get(id).profile() };
  },
  /** Call a module's default function: what it gives, as JSON. */
  async call({ url, args }) {
    return { result: await (await import(url)).default(...args) };
  },
  /** Make a session of a bundle whose files are here already, and run it once on zeros: the seconds of both. */
  async start({ url, names, options }) {
    const { createSession, inputs } = await import(`${url}/index.mjs`);
    const weights = await bytesOf(`${url}/weights.bin`), modules = {};
    for (const [name, file] of Object.entries(names)) modules[name] = await bytesOf(`${url}/${file}`);
    const zeros = zerosOf(inputs);
    const began = performance.now();
    const session = await createSession({ ...options, weights, modules });
    const made = performance.now();
    session.runSync(zeros);
    const ended = performance.now();
    session.dispose();
    return { made: (made - began) / 1e3, run: (ended - made) / 1e3, variant: session.variant };
  },
  /** Open a bundle as a visitor does, and run it once on zeros: the seconds of it all, and those after the last byte came. */
  async open({ url, options }) {
    const { createSession, inputs } = await import(`${url}/index.mjs`);
    const zeros = zerosOf(inputs);
    const began = performance.now();
    const session = await createSession(options);
    session.runSync(zeros);
    const ended = performance.now();
    session.dispose();
    const files = () => performance.getEntriesByType("resource").filter(({ name }) => /\.(wasm|bin)$/.test(name) && name.startsWith(url));
    while (files().length < 2) await new Promise((resolve) => setTimeout(resolve, 5)); // they are told a little later
    const came = Math.max(...files().map(({ responseEnd }) => responseEnd));
    return { whole: (ended - began) / 1e3, after: (ended - came) / 1e3 };
  },
  /** Show a page of the same server until it says that it is ready: its text. */
  async visit({ url }) {
    const frame = Object.assign(document.createElement("iframe"), { src: url, width: 1000, height: 800 });
    document.body.append(frame);
    const ready = () => frame.contentDocument?.body?.dataset.ready;
    for (let round = 0; round < 600 && !ready(); round++) await new Promise((resolve) => setTimeout(resolve, 100));
    const text = frame.contentDocument.body.innerText;
    if (!ready()) throw new Error(`the page is not ready after a minute: ${text}`);
    frame.remove();
    return { text };
  },
  async unload({ id }) {
    await models.get(id)?.close();
    models.delete(id);
    return {};
  },
};

export async function host(base) {
  for (;;) {
    const response = await fetch(`${base}/job`);
    if (response.status !== 200) return;
    const job = await response.json();
    if (job.deed === "wait") continue;
    let result;
    try {
      result = await DEEDS[job.deed](job);
    } catch (error) {
      result = { error: `${error?.name ?? "Error"}: ${error?.message ?? error}` };
    }
    await fetch(`${base}/done`, { method: "POST", body: JSON.stringify(result) });
  }
}

if (globalThis.process?.argv?.[2]?.startsWith("http://127.0.0.1:")) await host(process.argv[2]);
