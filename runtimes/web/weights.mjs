// The weights of a model: streamed into its memory, checked there, and kept in the browser's cache.

const CACHE = "edgesparse-weights";
// How long after the weights came they are put there.
const KEEP_MS = 500;
const DAMAGED = "the weights are damaged, or those of another build: their SHA-256 is not the model's";

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

/**
 * Stream the weights to their place in the model's memory, and check them there; what the cache has damaged is fetched again.
 * `place` gives the place as bytes, anew each time, as memory may grow; `wait` is told how many bytes are there and whole.
 */
export async function fill({ given, response, cache, key, again }, model, place, wait, options) {
  let wrong = given && sizeFault(given.length, model.weights.bytes);
  wrong ??= await receive(given ? streamOf(given, model.weights.partBytes) : response.body, model, place, wait, options);
  if (wrong && again) {
    await cache.delete(cacheKey(model, key)).catch(() => false);
    wrong = await receive((await again()).body, model, place, wait, options);
    again = null;
  }
  if (wrong) throw new Error(wrong);
  // Only what was checked is kept, and only the present build of it; later, as the first result is more urgent.
  if (cache && !again) setTimeout(() => keep(cache, cacheKey(model, key), place()), KEEP_MS);
}

function streamOf(bytes, step) {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      controller.enqueue(bytes.subarray(at, (at += step)));
      if (at >= bytes.length) controller.close();
    },
  });
}

/**
 * Take the weights piece by piece, and check each part as soon as it is whole, while it is in the processor's caches; where
 * hashing has threads of its own, it goes on while more is coming. Resolves to what is wrong with the weights, if anything.
 */
async function receive(stream, model, place, wait, options) {
  const { bytes: total, partBytes, parts } = model.weights;
  const reader = stream.getReader(), checks = [], whole = [];
  let loaded = 0, ready = 0, wrong = null;
  const check = async (part) => {
    const end = Math.min((part + 1) * partBytes, total);
    whole[part] = (await digest(place().subarray(part * partBytes, end))) === parts[part];
    if (!whole[part]) wrong = DAMAGED;
    for (; whole[ready]; ready++);
  };
  while (!wrong) {
    const { done, value: piece } = await wait(reader.read(), ready * partBytes);
    if (done) break;
    if (loaded + piece.length > total) {
      wrong = sizeFault(loaded + piece.length, total);
      break;
    }
    place().set(piece, loaded);
    loaded += piece.length;
    const arrived = loaded === total ? parts.length : Math.floor(loaded / partBytes);
    while (checks.length < arrived) checks.push(check(checks.length));
    options.onProgress?.(loaded, total);
  }
  if (wrong) void reader.cancel().catch(() => {});
  await Promise.all(checks);
  return wrong ?? sizeFault(loaded, total);
}

function sizeFault(loaded, total) {
  if (loaded > total) return `the weights have more than their ${total} bytes`;
  return loaded < total ? `the weights have ${loaded} bytes, not ${total}: they are cut short` : null;
}

async function keep(cache, key, bytes) {
  try {
    const path = new URL(key).pathname;
    for (const old of await cache.keys()) if (new URL(old.url).pathname === path) await cache.delete(old);
    // A response takes a copy, but not of shared memory.
    await cache.put(key, new Response(bytes.buffer instanceof ArrayBuffer ? bytes : bytes.slice()));
  } catch {
    // Storage may be full or forbidden: the next visit downloads again.
  }
}

async function digest(bytes) {
  const { subtle } = globalThis.crypto ?? {};
  // Pages that are not served over https have no crypto.subtle, and it takes no shared memory.
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
