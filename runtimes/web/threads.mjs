// Threads of a session: web workers on shared memory. Where they are not to be had there is one warning, and one thread.

const STACK = 65536;

const warned = new Set();

function warnOnce(text) {
  if (warned.has(text)) return;
  warned.add(text);
  console.warn(`edgesparse: ${text}`);
}

/** How many threads a session shall have: as many as asked for, else half of the cores of a page that is isolated. */
export function countThreads(most, asked) {
  const isolated = globalThis.crossOriginIsolated;
  if (asked === undefined) {
    return isolated === true ? Math.min(most, Math.ceil((globalThis.navigator?.hardwareConcurrency ?? 1) / 2)) : 1;
  }
  if (asked === 1) return 1;
  if (most === 1) {
    warnOnce(`${asked} threads were asked for, but this package was made for one: see edgesparse bundle --threads`);
    return 1;
  }
  if (isolated === false || typeof SharedArrayBuffer === "undefined") {
    warnOnce(`${asked} threads were asked for, but there is one: the page is not cross-origin isolated. Serve it and its `
      + "files with Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp");
    return 1;
  }
  if (asked > most) warnOnce(`${asked} threads were asked for, but this package was made for at most ${most}`);
  return Math.min(asked, most);
}

/** What a module imports for waiting. The main thread of a page must not sleep: it goes on looking. */
export function sleeper(memory) {
  const words = new Int32Array(memory.buffer);
  try {
    Atomics.wait(words, 0, ~words[0], 0); // returns at once, or throws where waiting is not allowed
  } catch {
    return () => {};
  }
  return (at, value) => { Atomics.wait(words, at >>> 2, value); };
}

async function startWorker() {
  // In these words, so that bundlers find the file.
  if (globalThis.Worker) return new Worker(new URL("./worker.mjs", import.meta.url), { type: "module" });
  const name = "node:worker_threads"; // not a literal, so that bundlers for the web leave it alone
  const { Worker: NodeWorker } = await import(/* webpackIgnore: true */ /* @vite-ignore */ name);
  return new NodeWorker(new URL(/* webpackIgnore: true */ /* @vite-ignore */ "./worker.mjs", import.meta.url));
}

/** Resolves when a worker has answered, to its answer. */
function hear(worker) {
  return new Promise((resolve, reject) => {
    const failed = (error) => reject(error instanceof Error ? error : new Error(error?.message ?? "a worker cannot be started"));
    if (worker.on) {
      worker.once("message", resolve);
      worker.once("error", failed);
      return;
    }
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = worker.onmessageerror = (event) => {
      event.preventDefault?.(); // it is told in the warning
      failed(event);
    };
  });
}

/** Start all threads but the caller's: what ends them; null, after a warning, if they cannot be started. */
export async function startThreads(threads, module, memory, code) {
  const workers = [];
  const stop = () => workers.forEach((worker) => worker.terminate());
  try {
    for (let index = 1; index < threads; index++) workers.push(await startWorker());
    await Promise.all(workers.map(async (worker, at) => {
      const stack = code.allocate(STACK) >>> 0;
      if (!stack) throw new Error("not enough memory for the stacks");
      const heard = hear(worker);
      worker.postMessage({ module, memory, index: at + 1, stack: stack + STACK });
      const { error } = await heard;
      if (error) throw new Error(error);
      worker.unref?.(); // Node may end while they sleep
    }));
    return stop;
  } catch (error) {
    stop();
    warnOnce(`${threads} threads were asked for, but there is one: ${error.message}`);
    return null;
  }
}
