// Run by test_web.py: what the package's functions refuse, and how. Usage: node web_usage.mjs URL_OF_INDEX
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";

const url = process.argv[2];
const { createSession, pickVariant, inputs, outputs } = await import(url);
const { sha256 } = await import(new URL("./weights.mjs", url));
const weights = new Uint8Array(await readFile(new URL("./weights.bin", url)));
const x = new Float32Array(3 * 40 * 40).fill(0.5);

// The hash that stands in where pages have no crypto.subtle.
for (const length of [0, 1, 55, 56, 63, 64, 65, 1000]) {
  const bytes = new Uint8Array(length).map((_, index) => index * 7);
  assert.equal(Buffer.from(sha256(bytes)).toString("hex"), createHash("sha256").update(bytes).digest("hex"));
}

assert.ok(["simd", "relaxed"].includes(await pickVariant()));
assert.deepEqual(inputs, { in0: { type: "float32", dims: [1, 3, 40, 40] } });

const memories = [], warmed = [];
const instantiate = WebAssembly.instantiate;
WebAssembly.instantiate = async (...given) => {
  const made = await instantiate(...given);
  if (!made.exports) return made;
  const { memory, warm } = made.exports;
  memories.push(memory);
  const noted = (call, ready) => {
    const next = warm(call, ready);
    warmed.push([call, ready, next]);
    return next;
  };
  return { exports: { ...made.exports, warm: noted } };
};
const warnings = [];
console.warn = (text) => warnings.push(text);
const progress = [];
const session = await createSession({ onProgress: (...told) => progress.push(told) });
assert.equal(session.threads, 1);
assert.deepEqual(progress.at(-1), [weights.length, weights.length]);

const [name] = Object.keys(outputs);
const first = (await session.run({ in0: x }))[name];
const again = await session.run({ in0: { data: x, dims: [1, 3, 40, 40] } });
assert.deepEqual(again[name], first);
assert.notEqual(again[name], first, "results of one run stay when the next one comes");
const into = { [name]: new Float32Array(first.length) };
assert.equal(session.runSync({ in0: x }, into), into);
assert.deepEqual(into[name], first);

// Threads: the same results on any number of them, and one warning where there are not as many as asked for.
for (const threads of [2, 3, 64, 64]) {
  const more = await createSession({ threads, variant: session.variant });
  assert.equal(more.threads, Math.min(threads, 3));
  for (let round = 0; round < 20; round++) assert.deepEqual(more.runSync({ in0: x })[name], first);
  assert.equal((await more.profile()).length, (await session.profile()).length);
  more.dispose();
}
assert.equal(warnings.length, 1, "one warning, however often");
assert.match(warnings[0], /64 threads were asked for, but this package was made for at most 3/);

// Nothing is allocated for a run, neither in the model's memory nor in JavaScript's.
const given = { in0: x };
const size = memories[0].buffer.byteLength;
const grown = Array.from({ length: 9 }, () => {
  const before = process.memoryUsage().heapUsed;
  for (let run = 0; run < 500; run++) session.runSync(given, into);
  return process.memoryUsage().heapUsed - before;
}).sort((a, b) => a - b);
assert.ok(grown[4] < 500 * 8, `500 runs take ${grown} bytes`);
assert.equal(memories[0].buffer.byteLength, size);

const refused = async (given, pattern) => assert.rejects(session.run(given), (error) => {
  assert.ok(error instanceof TypeError, String(error));
  assert.match(error.message, pattern);
  return true;
});
await refused({}, /input "in0" \(float32\[1x3x40x40\]\) is missing/);
await refused(null, /inputs must be an object with in0: float32\[1x3x40x40\]/);
await refused({ in0: x, more: x }, /there is no input "more"; the model has in0/);
await refused({ in0: new Float64Array(4800) }, /must be a Float32Array, not Float64Array/);
await refused({ in0: [1, 2, 3] }, /must be a Float32Array, not Array/);
await refused({ in0: new Float32Array(7) }, /must have 4800 elements, not 7/);
await refused({ in0: { data: x, dims: [1, 40, 40, 3] } }, /was given with the shape 1x40x40x3/);
await assert.rejects(session.run({ in0: x }, {}), TypeError);

await assert.rejects(createSession({ thread: 1 }), /unknown option "thread"; options are threads, /);
await assert.rejects(createSession({ threads: 1.5 }), /threads must be a whole number/);
await assert.rejects(createSession({ variant: "mmx" }), /unknown variant "mmx"; variants are simd, relaxed/);
await assert.rejects(createSession(null), TypeError);

// Weights that come slowly: the code is warmed up with those that are whole, in their order, and the results are the same.
const { fetch } = globalThis;
let sent = 0;
const slowly = (bytes, step, ms) => {
  sent = 0;
  globalThis.fetch = async (url, { signal }) => new Response(new ReadableStream({
    async pull(controller) {
      await new Promise((resolve) => setTimeout(resolve, ms));
      if (signal?.aborted) return controller.error(signal.reason);
      if (sent >= bytes.length) return controller.close();
      controller.enqueue(bytes.subarray(sent, (sent += step)));
    },
  }));
  return { weights: "https://example.invalid/weights.bin", variant: session.variant };
};
assert.deepEqual(warmed, [], "weights that are here are not waited for");
const slow = await createSession(slowly(weights, Math.ceil(weights.length / 20), 10));
const ready = warmed.map(([, bytes]) => bytes);
assert.ok(new Set(ready).size > 2 && Math.max(...ready) < weights.length && Math.min(...ready) % 1024 === 0);
assert.deepEqual(ready.toSorted((a, b) => a - b), ready);
assert.ok(warmed.some(([call, , next]) => next > call), "some calls were run");
assert.ok(warmed.every(([call, , next]) => [0, call, call + 1].includes(next)));
assert.deepEqual((await slow.run({ in0: x }))[name], first);
slow.dispose();

// A part that is damaged ends the download.
const early = weights.slice();
early[1500] ^= 1;
await assert.rejects(createSession(slowly(early, 512, 50)), /SHA-256 is not the model's/);
assert.ok(sent < weights.length / 2, `${sent} bytes were taken`);

// The user may end it.
const ending = new AbortController();
const onProgress = (loaded) => { if (loaded > 1000) ending.abort(new Error("enough")); };
await assert.rejects(createSession({ ...slowly(weights, 256, 50), onProgress, signal: ending.signal }), /enough/);
assert.ok(sent < weights.length / 2, `${sent} bytes were taken`);
globalThis.fetch = fetch;

(await createSession({ weights, variant: "simd" })).dispose();
const damaged = weights.slice();
damaged[damaged.length >> 1] ^= 1;
await assert.rejects(createSession({ weights: damaged }), /SHA-256 is not the model's/);
await assert.rejects(createSession({ weights: weights.subarray(1) }), /they are cut short/);
await assert.rejects(createSession({ weights: new Uint8Array(weights.length + 1) }), /more than their/);
await assert.rejects(createSession({ weights: new URL("./nothing.bin", url) }));

const layers = await session.profile();
assert.ok(layers.length && layers.every(({ ms, name }) => ms >= 0 && name));
session.dispose();
session.dispose();
await assert.rejects(session.run({ in0: x }), /was disposed of/);
