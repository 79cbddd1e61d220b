// A worker of a page: runs a bundle for some time, then tells what came out.
onmessage = async ({ data: { url, given, milliseconds } }) => {
  const { createSession } = await import(url);
  const session = await createSession({ threads: 2 });
  const started = performance.now();
  let runs = 0, result;
  for (; performance.now() - started < milliseconds; runs++) result = session.runSync(given);
  postMessage({ threads: session.threads, runs, result });
  session.dispose();
};
