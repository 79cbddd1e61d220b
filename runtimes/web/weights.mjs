// The weights of a model: streamed into its memory, checked there, and kept in the browser's cache.

const CACHE = "edgesparse-weights";

/** A response for a URL; Node's fetch knows no files. */
export async function load(url, signal, cache = "default") {
  const { href, protocol } = new URL(url);
  if (protocol === "file:" && globalThis.process?.versions?.node) {
    const name = "node:fs"; // not a literal, so that bundlers for the web leave it alone
    const { openAsBlob } = await import(/* webpackIgnore: true */ /* @vite-ignore */ name);
    return new Response(await openAsBlob(new URL(href)));
  }
  const response = await fetch(href, { signal, cache });
  if (!response.ok) throw new Error(`cannot load ${href}: ${response.status} ${response.statusText}`);
  return response;
}

/** Ask for the weights: what `fill` takes. */
export async function openWeights(model, options) {
  const source = options.weights ?? model.weights.url;
  if (source instanceof ArrayBuffer) return { given: new Uint8Array(source) };
  if (ArrayBuffer.isView(source)) return { given: new Uint8Array(source.buffer, source.byteOffset, source.byteLength) };
  const key = `${new URL(source).href}#${model.weights.sha256}`;
  const cache = options.cache === false ? null : await openCache(key);
  const known = await cache?.match(cacheKey(model, key)).catch(() => undefined);
  const again = () => load(source, options.signal, "reload");
  return known ? { response: known, cache, key, again } : { response: await load(source, options.signal), cache, key };
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

/** Stream the weights into the model's memory, and check them there; what the cache has damaged is fetched again. */
export async function fill({ given, response, cache, key, again }, model, code, memory, options) {
  const { bytes: total } = model.weights;
  const at = code.allocate(total) >>> 0;
  if (!at) throw new Error(`not enough memory for ${total} bytes of weights`);
  const bytes = new Uint8Array(memory.buffer, at, total);
  let wrong = given ? await copy(given, model, bytes, options) : await stream(response, model, bytes, options);
  if (wrong && again) {
    await cache.delete(cacheKey(model, key)).catch(() => false);
    wrong = await stream(await again(), model, bytes, options);
    again = null;
  }
  if (wrong) throw new Error(wrong);
  // Only what was checked is kept, and only the present build of it.
  if (cache && !again) void keep(cache, cacheKey(model, key), bytes.slice());
  return bytes;
}

/** What is wrong with the weights that came, if anything. */
async function stream(response, model, bytes, options) {
  const { bytes: total, sha256 } = model.weights;
  let loaded = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (loaded + part.value.length > total) {
      await reader.cancel();
      return tooMany(total);
    }
    bytes.set(part.value, loaded);
    loaded += part.value.length;
    options.onProgress?.(loaded, total);
  }
  return await check(bytes, loaded, sha256);
}

/** The same for weights that are here already: a stream of them would take longer than all else. */
async function copy(given, model, bytes, options) {
  const { bytes: total, sha256 } = model.weights;
  if (given.length > total) return tooMany(total);
  bytes.set(given);
  options.onProgress?.(given.length, total);
  return await check(bytes, given.length, sha256);
}

const tooMany = (total) => `the weights have more than their ${total} bytes`;

async function check(bytes, loaded, sha256) {
  if (loaded !== bytes.length) return `the weights have ${loaded} bytes, not ${bytes.length}: they are cut short`;
  if ((await digest(bytes)) === sha256) return null;
  return "the weights are damaged, or those of another build: their SHA-256 is not the model's";
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
  // It takes no shared memory.
  const own = subtle && !(bytes.buffer instanceof ArrayBuffer) ? bytes.slice() : bytes;
  const sum = subtle ? new Uint8Array(await subtle.digest("SHA-256", own)) : sha256(bytes);
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
