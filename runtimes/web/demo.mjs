// The demo page: one picture through the sparse and the dense form of a model, and, if it lies at ./ort/ with the model
// as ./model.onnx, through onnxruntime-web.
import { createSession, inputs } from "../index.mjs";
import { toTensor } from "./picture.mjs";

const $ = (id) => document.getElementById(id);
const say = (text) => { $("note").textContent = text; };
const settings = await (await fetch("./settings.json")).json();
const [[inputName, { dims }]] = Object.entries(inputs);
const contenders = [];

async function start() {
  $("title").textContent = settings.name;
  const sparse = await createSession();
  contenders.push({ name: "sparse", style: "sparse", bytes: settings.sparseBytes, run: runner(sparse), session: sparse });
  $("about").textContent = `Compiled by edgesparse: ${sparse.variant === "simd" ? "plain" : "relaxed"} SIMD, one thread, `
    + `${Math.round(100 * settings.density)} % of the weights are not zero.`;
  drawGreeting();
  await show();
  const dense = await (await import("./dense/index.mjs")).createSession();
  contenders.push({ name: "dense, same compiler", style: "dense", bytes: settings.denseBytes, run: runner(dense) });
  const ort = await onnxruntime();
  if (ort) contenders.push(ort);
  await show();
  document.body.dataset.ready = "yes";
}

const runner = (session) => async (data) => Object.values(await session.run({ [inputName]: data }))[0];

/** onnxruntime-web, if the user put it there; it is no part of the bundle. */
async function onnxruntime() {
  const there = await fetch("./ort/ort.wasm.min.mjs", { method: "HEAD" }).catch(() => null);
  if (!there?.ok) return null;
  const ort = await import("./ort/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  const bytes = new Uint8Array(await (await fetch("./model.onnx")).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return {
    name: "onnxruntime-web", style: "other", bytes: bytes.length,
    run: async (data) => Object.values(await session.run({ [inputName]: new ort.Tensor("float32", data, dims) }))[0].data,
  };
}

/** A picture to begin with, made here: no network. */
function drawGreeting() {
  const canvas = $("picture"), pen = canvas.getContext("2d");
  const sky = pen.createLinearGradient(0, 0, 0, canvas.height);
  sky.addColorStop(0, "#8ec5ff"); sky.addColorStop(.6, "#fff1d6"); sky.addColorStop(.61, "#3f7d4e"); sky.addColorStop(1, "#1f4d2e");
  pen.fillStyle = sky; pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#ffd35c"; pen.beginPath(); pen.arc(165, 55, 24, 0, 7); pen.fill();
  pen.fillStyle = "#6b4a2f"; pen.fillRect(66, 92, 14, 70);
  pen.fillStyle = "#2e8b57"; pen.beginPath(); pen.arc(73, 82, 38, 0, 7); pen.fill();
}

/** Run everything in turn on what the canvas shows; the median of some runs counts. */
async function show() {
  say("measuring…");
  const pixels = $("picture").getContext("2d").getImageData(0, 0, dims[3], dims[2]);
  const data = toTensor(pixels.data, dims, settings);
  const times = new Map(contenders.map(({ name }) => [name, []]));
  let scores;
  for (let round = 0; round < 25; round++) {
    for (const each of contenders) {
      const began = performance.now();
      const found = await each.run(data);
      if (round >= 5) times.get(each.name).push(performance.now() - began);
      if (each.style === "sparse") scores = found;
    }
    await new Promise((resolve) => setTimeout(resolve)); // let the page breathe
  }
  const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];
  bars("latency", contenders.map((each) => ({ ...each, value: median(times.get(each.name)) })), 2);
  bars("size", contenders.map((each) => ({ ...each, value: each.bytes / 1e6 })), 1);
  bars("top", best(scores), 1, "%");
  say("Runs take turns, one thread each. Reload for another measurement.");
}

function best(scores) {
  const largest = scores.reduce((a, b) => Math.max(a, b));
  // Scores that are probabilities already stay as they are.
  const sum = scores.reduce((total, score) => total + score, 0);
  const shares = scores.every((score) => score >= 0) && Math.abs(sum - 1) < 1e-3
    ? Array.from(scores) : Array.from(scores, (score) => Math.exp(score - largest));
  const total = shares.reduce((a, b) => a + b, 0);
  return shares.map((share, index) => ({ name: settings.labels?.[index] ?? `class ${index}`, value: 100 * share / total }))
    .sort((a, b) => b.value - a.value).slice(0, 5);
}

function bars(id, rows, digits, unit = "") {
  const most = Math.max(...rows.map(({ value }) => value), 1e-9);
  $(id).replaceChildren(...rows.map(({ name, value, style = "" }) => {
    const row = document.createElement("div"), label = document.createElement("span");
    const bar = document.createElement("div"), number = document.createElement("span");
    row.className = "row"; label.className = "name"; bar.className = `bar ${style}`;
    label.textContent = label.title = name;
    bar.style.width = `${100 * value / most}%`;
    number.textContent = value.toFixed(digits) + unit;
    row.append(label, bar, number);
    return row;
  }));
}

/** The middle of a picture or video, as large as it goes, at the model's size. */
async function take(source, width, height) {
  const canvas = $("picture"), scale = Math.min(width / canvas.width, height / canvas.height);
  const [w, h] = [canvas.width * scale, canvas.height * scale];
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, (width - w) / 2, (height - h) / 2, w, h, 0, 0, canvas.width, canvas.height);
  await show();
}

async function takeFile(file) {
  try {
    const picture = await createImageBitmap(file);
    await take(picture, picture.width, picture.height);
  } catch {
    say("That is not a picture that this browser can read.");
  }
}

async function takeCamera() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: true });
    const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true });
    await video.play();
    await take(video, video.videoWidth, video.videoHeight);
  } catch (error) {
    say(`No camera: ${error.message}`);
  } finally {
    stream?.getTracks().forEach((track) => track.stop());
  }
}

[$("picture").height, $("picture").width] = dims.slice(2);
$("drop").addEventListener("click", (event) => { if (event.target !== $("camera")) $("file").click(); });
$("drop").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target === $("drop")) $("file").click(); });
$("file").addEventListener("click", (event) => event.stopPropagation());
$("file").addEventListener("change", () => { if ($("file").files[0]) takeFile($("file").files[0]); });
$("camera").addEventListener("click", takeCamera);
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) takeFile(event.dataTransfer.files[0]);
  });
}
start().catch((error) => say(`It does not run here: ${error.message}`));
