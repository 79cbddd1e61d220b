// The demo page: one picture through the sparse and the dense form of a model, and, if it lies at ./ort/ with the model
// as ./model.onnx, through onnxruntime-web.
import { createSession, inputs } from "../index.mjs";
import { takeMiddle, toTensor } from "./picture.mjs";

const $ = (id) => document.getElementById(id);
const settings = await (await fetch("./settings.json")).json();
const [[inputName, { dims }]] = Object.entries(inputs);
const ROUNDS = 25, SKIPPED = 5; // engines replace their first, slow code while models run

const contenders = [];
let picture, shown = 0, stopCamera = null;

function say(text, trouble = false) {
  $("note").textContent = text;
  $("note").classList.toggle("trouble", trouble);
}

async function start() {
  [$("picture").height, $("picture").width] = dims.slice(2);
  document.title = $("title").textContent = settings.name;
  const sparse = await createSession({ threads: 1 });
  contenders.push({ name: "sparse", style: "sparse", bytes: settings.sparseBytes, run: runner(sparse) });
  $("about").textContent = `Compiled by edgesparse: ${sparse.variant === "simd" ? "plain" : "relaxed"} SIMD, one thread, `
    + `${Math.round(100 * settings.density)} % of the weights are not zero.`;
  listen();
  await show(greeting());
  await add("dense", async () => {
    const dense = await (await import("./dense/index.mjs")).createSession({ threads: 1 });
    return { style: "dense", bytes: settings.denseBytes, run: runner(dense) };
  });
  await add("onnxruntime-web", onnxruntime);
  if (globalThis.crossOriginIsolated) {
    const wide = await createSession({ threads: 2 });
    if (wide.threads > 1) contenders.push({ name: "sparse, two threads", style: "sparse", run: runner(wide) });
  }
  if (!stopCamera) await show(picture);
  document.body.dataset.ready = "yes";
}

/** One more to compare with. The page goes on without those that do not load. */
async function add(name, load) {
  try {
    const loaded = await load();
    if (loaded) contenders.push({ name, ...loaded });
  } catch (error) {
    console.error(error);
    say(`${name} cannot be loaded: ${error.message}`, true);
  }
}

const runner = (session) => async (data) => Object.values(await session.run({ [inputName]: data }))[0];

/** onnxruntime-web, if the user put it there; it is no part of the bundle. */
async function onnxruntime() {
  const there = await fetch("./ort/ort.wasm.min.mjs").catch(() => null);
  if (!there?.ok) return null;
  const ort = await import("./ort/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  const model = await fetch("./model.onnx");
  if (!model.ok) throw new Error("the model is not at demo/model.onnx");
  const bytes = new Uint8Array(await model.arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const files = new Map(performance.getEntriesByType("resource").map(({ name, decodedBodySize }) => [name, decodedBodySize]));
  const code = [...files].filter(([name]) => name.includes("/demo/ort/")).reduce((sum, [, size]) => sum + size, 0);
  return {
    style: "other", bytes: code + bytes.length,
    run: async (data) => Object.values(await session.run({ [inputName]: new ort.Tensor("float32", data, dims) }))[0].data,
  };
}

// -- pictures -----------------------------------------------------------------------------------------------------

/** A canvas that pixels are read from; what is transparent becomes white. */
function paper(width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, height);
  return pen;
}

function pixelsOf(source, width, height) {
  const pen = paper(width, height);
  pen.drawImage(source, 0, 0);
  return pen.getImageData(0, 0, width, height);
}

/** A picture to begin with, made here: no network. */
function greeting() {
  const pen = paper(256, 256), sky = pen.createLinearGradient(0, 0, 0, 256);
  sky.addColorStop(0, "#8ec5ff"); sky.addColorStop(.6, "#fff1d6"); sky.addColorStop(.61, "#3f7d4e"); sky.addColorStop(1, "#1f4d2e");
  pen.fillStyle = sky; pen.fillRect(0, 0, 256, 256);
  pen.fillStyle = "#ffd35c"; pen.beginPath(); pen.arc(186, 65, 27, 0, 7); pen.fill();
  pen.fillStyle = "#6b4a2f"; pen.fillRect(76, 106, 16, 80);
  pen.fillStyle = "#2e8b57"; pen.beginPath(); pen.arc(84, 95, 43, 0, 7); pen.fill();
  return pen.getImageData(0, 0, 256, 256);
}

/** What the network is given, which is drawn as well. */
function prepare(pixels) {
  const values = takeMiddle(pixels, dims, settings), canvas = $("picture");
  const image = new ImageData(canvas.width, canvas.height);
  for (let from = 0, to = 0; from < values.length; from += 3, to += 4) {
    for (let channel = 0; channel < 3; channel++) image.data[to + channel] = values[from + channel];
    image.data[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return toTensor(values, dims, settings);
}

/** Tell the classes at once, then run everything in turn; the median of some runs counts. */
async function show(pixels) {
  const mine = ++shown, current = () => mine === shown;
  picture = pixels;
  const data = prepare(pixels);
  chart("top", best(await contenders[0].run(data)), 1, " %");
  say("Measuring…");
  const times = new Map(contenders.map((each) => [each, []]));
  for (let round = 0; round < ROUNDS; round++) {
    for (const [each, list] of times) {
      const began = performance.now();
      await each.run(data);
      if (round >= SKIPPED) list.push(performance.now() - began);
    }
    await new Promise((resolve) => setTimeout(resolve)); // let the page breathe
    if (!current()) return;
  }
  const rows = [...times].map(([each, list]) => ({ ...each, value: list.sort((a, b) => a - b)[list.length >> 1] }));
  chart("latency", rows, 2);
  chart("size", rows.filter(({ bytes }) => bytes).map((each) => ({ ...each, value: each.bytes / 1e6 })), 2);
  const [sparse, ...others] = rows;
  const ratios = others.map(({ name, value }) => `${(value / sparse.value).toFixed(1)} times as fast as ${name}`);
  $("speedup").textContent = ratios.length ? `Sparse is ${ratios.join(", ")}.` : "";
  say(`Medians of ${ROUNDS - SKIPPED} runs in turn. Dense is the same network by the same compiler.`);
  document.body.dataset.measured = String(mine);
}

function best(scores) {
  const largest = scores.reduce((a, b) => Math.max(a, b)), sum = scores.reduce((a, b) => a + b, 0);
  // Scores that are probabilities already stay as they are.
  const known = scores.every((score) => score >= 0) && Math.abs(sum - 1) < 1e-3;
  const shares = Array.from(scores, (score) => (known ? score : Math.exp(score - largest)));
  const total = shares.reduce((a, b) => a + b, 0);
  return shares.map((share, index) => ({ name: settings.labels?.[index] ?? `class ${index}`, value: 100 * share / total }))
    .sort((a, b) => b.value - a.value).slice(0, 5);
}

function chart(id, rows, digits, unit = "") {
  const most = Math.max(...rows.map(({ value }) => value), 1e-9);
  $(id).replaceChildren(...rows.map(({ name, value, style = "" }) => {
    const row = document.createElement("li");
    const [label, bar, number] = ["span", "div", "span"].map((kind) => row.appendChild(document.createElement(kind)));
    label.textContent = name;
    bar.className = `bar ${style}`;
    bar.style.width = `${100 * value / most}%`;
    bar.setAttribute("aria-hidden", "true");
    number.textContent = value.toFixed(digits) + unit;
    return row;
  }));
}

// -- where pictures come from -------------------------------------------------------------------------------------

async function takeFile(file) {
  const image = new Image(), url = URL.createObjectURL(file);
  image.src = url;
  try {
    await image.decode();
  } catch {
    say(`${file.name || "That"} is not a picture that this browser can read.`, true);
    return;
  } finally {
    URL.revokeObjectURL(url);
  }
  await show(pixelsOf(image, image.naturalWidth, image.naturalHeight));
}

const REFUSALS = {
  NotAllowedError: "The camera was not allowed. Allow it beside the page's address, or pick a picture.",
  NotFoundError: "There is no camera here. Pick a picture instead.",
  NotReadableError: "The camera is in use by another program.",
};

/** Classify what the camera sees until it is stopped; the last picture is measured. */
async function runCamera() {
  if (!navigator.mediaDevices) {
    say("Browsers give the camera only to pages from https or localhost. Pick a picture instead.", true);
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(REFUSALS[error.name] ?? `No camera: ${error.message}`, true);
    return;
  }
  const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
  const mine = ++shown; // another picture ends it as well
  let running = true;
  stopCamera = () => { running = false; };
  stream.getVideoTracks()[0]?.addEventListener("ended", stopCamera);
  $("camera").textContent = "Stop the camera";
  $("camera").setAttribute("aria-pressed", "true");
  $("top").setAttribute("aria-live", "off"); // many times a second
  try {
    await video.play();
    while (running && mine === shown) {
      const pixels = pixelsOf(video, video.videoWidth, video.videoHeight), data = prepare(pixels);
      const began = performance.now();
      const scores = await contenders[0].run(data);
      say(`The camera: ${(performance.now() - began).toFixed(1)} ms a picture, sparse.`);
      chart("top", best(scores), 1, " %");
      picture = pixels;
      await new Promise((resolve) => requestAnimationFrame(resolve));
    }
  } catch (error) {
    say(`The camera gives no pictures: ${error.message}`, true);
    return;
  } finally {
    stopCamera = null;
    stream.getTracks().forEach((track) => track.stop());
    $("camera").textContent = "Use the camera";
    $("camera").setAttribute("aria-pressed", "false");
    $("top").setAttribute("aria-live", "polite");
  }
  if (mine === shown) await show(picture);
}

function listen() {
  const picks = (files) => [...files ?? []].find(Boolean);
  $("pick").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    const file = picks($("file").files);
    $("file").value = ""; // so that the same one may be picked again
    if (file) takeFile(file);
  });
  $("camera").addEventListener("click", () => (stopCamera ? stopCamera() : runCamera()));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("over", kind === "dragover");
      const file = kind === "drop" && picks(event.dataTransfer.files);
      if (file) takeFile(file);
    });
  }
  document.addEventListener("paste", (event) => {
    const file = picks(event.clipboardData.files);
    if (file) takeFile(file);
  });
}

start().catch((error) => {
  console.error(error);
  $("about").textContent = "";
  say(`It does not run here: ${error.message}`, true);
});
