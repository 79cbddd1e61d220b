// Has the engine optimise a model's code while the weights are on their way: calls whose weights are there already are run
// for nothing, so that the first run is not as slow as first runs are. Weights that come fast are not held up by it.

// After how long it begins, how long one turn takes, and all of them together.
const BEGIN_MS = 50;
const TURN_MS = 2;
const TOTAL_MS = 200;

const pause = () => new Promise((resolve) => setTimeout(resolve, 0));

/**
 * A function that waits for a promise of more weights and uses the time, told how many of all `bytes` are there and whole.
 * `create` makes the model, if there is none yet.
 */
export function warmer(code, bytes, create) {
  const began = performance.now();
  let spent = 0, call = 0;

  function turn(ready) {
    const started = performance.now();
    create();
    do {
      const next = code.warm(call, ready) >>> 0;
      // As far as the weights go, and then from the start.
      call = next === call ? 0 : next;
    } while (performance.now() - started < TURN_MS);
    spent += performance.now() - started;
  }

  // The share of the time grows with the weights, so that some is left for what the last of them belong to.
  const may = (ready) => performance.now() - began > BEGIN_MS && spent < (TOTAL_MS * ready) / bytes;

  return async (more, ready) => {
    while (may(ready) && !(await Promise.race([more.then(() => true), pause()]))) turn(ready);
    return await more;
  };
}
