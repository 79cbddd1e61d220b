// Run by test_web_demo.py in a page: uses the demo page in a frame as people do, and tells what it shows.

const until = async (what, condition) => {
  for (let round = 0; round < 1200; round++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error(`waited in vain for ${what}`);
};

/** The page in a frame, ready. */
async function opened(url) {
  const frame = Object.assign(document.createElement("iframe"), { src: url, width: 1000, height: 800, allow: "camera" });
  document.body.append(frame);
  await until("the page", () => frame.contentDocument?.body?.dataset.ready);
  const page = frame.contentDocument;
  const texts = (id) => Array.from(page.getElementById(id).children, (row) => Array.from(row.children, (cell) => cell.textContent));
  const measured = () => Number(page.body.dataset.measured);
  return {
    frame, page, window: frame.contentWindow, texts, measured,
    note: () => page.getElementById("note").textContent,
    trouble: () => page.getElementById("note").classList.contains("trouble"),
    async again(action) {
      const before = measured();
      await action();
      await until("a measurement", () => measured() > before);
    },
  };
}

function handOver({ page, window }, kind, file) {
  const files = new window.DataTransfer();
  files.items.add(file);
  const event = kind === "paste"
    ? new window.ClipboardEvent("paste", { clipboardData: files, bubbles: true })
    : new window.DragEvent(kind, { dataTransfer: files, bubbles: true, cancelable: true });
  page.querySelector("main").dispatchEvent(event);
}

const CHECKS = {
  /** One picture dropped, another pasted, the first one picked: the best classes of each. */
  async pictures(url, first, second) {
    const it = await opened(url), told = {};
    const file = async (address) => new it.window.File([await (await fetch(address)).blob()], "it.png", { type: "image/png" });
    const [one, other] = [await file(first), await file(second)];
    await it.again(() => handOver(it, "drop", one));
    told.drop = it.texts("top");
    await it.again(() => handOver(it, "paste", other));
    told.paste = it.texts("top");
    await it.again(() => {
      const files = new it.window.DataTransfer();
      files.items.add(one);
      const input = it.page.getElementById("file");
      input.files = files.files;
      input.dispatchEvent(new it.window.Event("change"));
    });
    told.pick = it.texts("top");
    told.contenders = it.texts("latency").map(([name]) => name);
    told.sizes = Object.fromEntries(it.texts("size").map(([name, , value]) => [name, Number(value)]));
    told.note = it.note();
    it.frame.remove();
    return told;
  },

  /** What the page says to a file that is no picture, and to cameras that are not to be had. */
  async trouble(url) {
    const it = await opened(url), told = { fine: it.trouble() };
    const says = async (action) => {
      it.page.getElementById("note").textContent = "";
      action();
      await until("a word", () => it.note());
      return [it.note(), it.trouble()];
    };
    const { mediaDevices } = it.window.navigator;
    const camera = () => it.page.getElementById("camera").click();
    told.file = await says(() => handOver(it, "drop", new it.window.File(["no picture"], "notes.txt")));
    for (const name of ["NotAllowedError", "NotFoundError", "AbortError"]) {
      mediaDevices.getUserMedia = () => Promise.reject(new it.window.DOMException("words", name));
      told[name] = await says(camera);
    }
    Object.defineProperty(it.window.navigator, "mediaDevices", { value: undefined });
    told.insecure = await says(camera);
    await it.again(() => handOver(it, "drop", picture(it)));
    told.after = [it.note(), it.trouble()];
    it.frame.remove();
    return told;
  },

  /** A camera that shows one colour: what the page does while it runs, and after it was stopped. */
  async camera(url) {
    const it = await opened(url), told = {}, button = it.page.getElementById("camera");
    const canvas = Object.assign(document.createElement("canvas"), { width: 320, height: 240 }), pen = canvas.getContext("2d");
    const clock = setInterval(() => { pen.fillStyle = "#c83214"; pen.fillRect(0, 0, 320, 240); }, 20);
    let stream;
    it.window.navigator.mediaDevices.getUserMedia = async () => (stream = canvas.captureStream(30));
    button.click();
    await until("the camera", () => it.note().startsWith("The camera: "));
    told.running = [button.textContent, button.getAttribute("aria-pressed"), it.page.getElementById("top").getAttribute("aria-live")];
    await it.again(() => button.click());
    clearInterval(clock);
    told.stopped = [button.textContent, button.getAttribute("aria-pressed"), it.page.getElementById("top").getAttribute("aria-live")];
    told.ended = stream.getTracks().every((track) => track.readyState === "ended");
    told.pixel = Array.from(it.page.getElementById("picture").getContext("2d").getImageData(5, 5, 1, 1).data);
    it.frame.remove();
    return told;
  },

  /** What a reader of screens is told, and what the keyboard reaches. */
  async access(url) {
    const it = await opened(url);
    const named = (each) => each.getAttribute("aria-label") ?? it.page.getElementById(each.getAttribute("aria-labelledby"))?.textContent;
    let picks = 0;
    it.page.getElementById("file").click = () => picks++;
    const reached = Array.from(it.page.querySelectorAll("button, summary"), (each) => {
      each.focus();
      return [each.textContent, it.page.activeElement === each];
    });
    it.page.getElementById("pick").click();
    const told = {
      reached, picks,
      language: it.page.documentElement.lang,
      sections: Array.from(it.page.querySelectorAll("section"), named),
      picture: named(it.page.getElementById("picture")),
      status: it.page.getElementById("note").getAttribute("role"),
      barsHidden: Array.from(it.page.querySelectorAll(".bar")).every((bar) => bar.getAttribute("aria-hidden") === "true"),
    };
    it.frame.remove();
    return told;
  },
};

function picture({ window }) {
  const svg = '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="60"><rect width="60" height="60" fill="red"/></svg>';
  return new window.File([svg], "red.svg", { type: "image/svg+xml" });
}

export default (name, ...args) => CHECKS[name](...args);
