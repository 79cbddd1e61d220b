// Run by test_web_pages.py in a page: what a bundle does there, told as JSON. The first argument names the check, the second
// is the address of a bundle.

const inputsFor = ({ inputs }) => Object.fromEntries(Object.entries(inputs).map(([name, { dims }]) =>
  [name, Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, at) => Math.sin(at))]));

const same = (a, b) => Object.keys(a).every((name) => a[name].every((value, at) => Object.is(value, b[name][at])));

/** Have console.warn tell its texts instead. */
async function warningsOf(action) {
  const texts = [], real = console.warn;
  console.warn = (text) => texts.push(text);
  try {
    await action();
  } finally {
    console.warn = real;
  }
  return texts;
}

const CHECKS = {
  /** Runs on one thread and on more, in each variant: whether all results are the same to the last bit. */
  async threads(base, wanted) {
    const bundle = await import(`${base}/index.mjs`);
    const given = inputsFor(bundle), told = {};
    told.warnings = await warningsOf(async () => {
      for (const variant of ["simd", "relaxed"]) {
        const one = await bundle.createSession({ variant, threads: 1 });
        const more = await bundle.createSession({ variant, threads: wanted });
        const expected = one.runSync(given);
        let equal = true;
        for (let round = 0; round < 50; round++) equal &&= same(more.runSync(given), expected);
        told[variant] = { threads: more.threads, equal };
        one.dispose();
        more.dispose();
      }
    });
    return told;
  },

  /** How many threads a session has that was not told. */
  async byItself(base, cores) {
    Object.defineProperty(navigator, "hardwareConcurrency", { value: cores, configurable: true });
    const session = await (await import(`${base}/index.mjs`)).createSession();
    delete navigator.hardwareConcurrency;
    session.dispose();
    return session.threads;
  },

  /** Workers that do not start. */
  async withoutWorkers(base) {
    const bundle = await import(`${base}/index.mjs`), real = globalThis.Worker, told = {};
    const given = inputsFor(bundle);
    const one = await bundle.createSession({ threads: 1 });
    const kinds = {
      refused: class { constructor() { throw new Error("no workers here"); } },
      missing: class extends real { constructor() { super("/nothing.mjs"); } },
    };
    for (const [kind, fake] of Object.entries(kinds)) {
      globalThis.Worker = fake;
      const warnings = await warningsOf(async () => {
        const session = await bundle.createSession({ threads: 2, variant: one.variant });
        told[kind] = { threads: session.threads, equal: same(session.runSync(given), one.runSync(given)) };
      });
      told[kind].warnings = warnings.length;
    }
    globalThis.Worker = real;
    return told;
  },

  /** A session in a worker, on two threads, while the page goes on. */
  async inWorker(base) {
    const bundle = await import(`${base}/index.mjs`);
    const given = inputsFor(bundle);
    const worker = new Worker(new URL("./web_worker.mjs", import.meta.url), { type: "module" });
    const answer = new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = ({ message }) => reject(new Error(message));
    });
    worker.postMessage({ url: `${base}/index.mjs`, given, milliseconds: 300 });
    let turns = 0;
    const clock = setInterval(() => turns++, 5);
    const { threads, runs, result } = await answer;
    clearInterval(clock);
    worker.terminate();
    const session = await bundle.createSession({ threads: 1 });
    return { threads, runs, turns, equal: same(result, session.runSync(given)) };
  },

  /** The second load comes from the cache; what is damaged there is fetched again, and is whole afterwards. */
  async cache(base) {
    const bundle = await import(`${base}/index.mjs`);
    const given = inputsFor(bundle), real = globalThis.fetch, told = { fetched: [], equal: true };
    await caches.delete("edgesparse-weights");
    let fetched = 0;
    globalThis.fetch = (url, ...more) => {
      fetched += String(url).includes("weights.bin");
      return real(url, ...more);
    };
    let expected;
    const load = async () => {
      fetched = 0;
      const session = await bundle.createSession({ threads: 1 });
      const result = session.runSync(given);
      session.dispose();
      told.equal &&= same(result, expected ??= result);
      told.fetched.push(fetched);
    };
    const entry = async () => {
      const cache = await caches.open("edgesparse-weights");
      for (let round = 0; round < 100 && !(await cache.keys()).length; round++) await new Promise((r) => setTimeout(r, 20));
      const [key] = await cache.keys();
      return { cache, key, bytes: new Uint8Array(await (await cache.match(key)).arrayBuffer()) };
    };
    await load();
    const { cache, key, bytes } = await entry();
    await load();
    const damaged = bytes.slice();
    damaged[damaged.length >> 1] ^= 1;
    for (const wrong of [damaged, bytes.subarray(100), new Uint8Array(bytes.length + 1)]) {
      await cache.put(key, new Response(wrong));
      await load();
      told.equal &&= same({ bytes: (await entry()).bytes }, { bytes });
      await load();
    }
    globalThis.fetch = real;
    return told;
  },
};

export default (name, ...args) => CHECKS[name](...args);
