// One more thread of a session: an instance of the same module on the same memory. It sleeps while there is nothing to run,
// and ends with the session.

async function serve({ module, memory, index, stack }, answer) {
  try {
    const words = new Int32Array(memory.buffer);
    const es = { now: () => 0, sleep: (at, value) => { Atomics.wait(words, at >>> 2, value); } };
    const { exports } = await WebAssembly.instantiate(module, { env: { memory }, es });
    exports.__stack_pointer.value = stack;
    answer({});
    exports.serve(index);
    globalThis.close?.();
  } catch (error) {
    answer({ error: String(error) });
  }
}

if (typeof globalThis.postMessage === "function") {
  globalThis.onmessage = ({ data }) => serve(data, (told) => globalThis.postMessage(told));
} else {
  const name = "node:worker_threads"; // not a literal, so that bundlers for the web leave it alone
  import(/* webpackIgnore: true */ /* @vite-ignore */ name).then(({ parentPort }) => {
    parentPort.once("message", (data) => serve(data, (told) => parentPort.postMessage(told)));
  });
}
