// The second part of the script of the page. The whole script runs twice: on the page, and in its
// worker, which has no document. So the page never freezes while the network computes.

const MOST = 5; // classes to name, as in page.html.j2

// --- the worker: receives the network once, then images or their pixels ---

function serve() {
  let network, weights;
  onmessage = ({ data }) => {
    if (!network) {
      network = data;
      const bytes = Uint8Array.from(atob(network.weights), (letter) => letter.charCodeAt(0));
      weights = new Float32Array(bytes.buffer);
      return;
    }
    const start = performance.now();
    try {
      const pixels = data.pixels ?? squeezed(drawn(data.bitmap), network.size);
      const values = run(network, weights, pixels);
      const logits = Array.from(values.at(-1).data, (logit) => logit / network.temperature);
      const features = values[network.features], head = network.layers.at(-1);
      const labels = features ? ranked(logits).slice(0, MOST) : [];
      const maps = labels.map((label) => classMap(features, label, head, weights));
      postMessage({ id: data.id, pixels, logits, maps, milliseconds: performance.now() - start });
    } catch (problem) {
      postMessage({ id: data.id, problem: String(problem) });
    }
  };
}

// --- the page ---

const element = (id) => document.getElementById(id);
const waiting = new Map(); // the questions to the worker, by number
let worker, network, answer, maps = [], asked = 0, turns = 0, shown = 0;

function show() {
  network = JSON.parse(element("network").textContent);
  const script = new Blob([document.currentScript.textContent], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(script));
  worker.postMessage(network);
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.problem) reject(new Error(data.problem));
    else resolve(data);
  };
  worker.onerror = () => tell("This browser cannot run the network. Try another browser.");
  for (const input of document.querySelectorAll("input[type=file]"))
    input.addEventListener("change", () => {
      take(input.files);
      input.value = ""; // so that the same file can be chosen again
    });
  element("threshold").addEventListener("input", say);
  say();
  element("strength")?.addEventListener("input", overlay);
  for (const choice of document.querySelectorAll("[name=map]"))
    choice.addEventListener("change", overlay);
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    take(event.dataTransfer.files);
  });
}

/** Asks the worker about {bitmap} or {pixels}: bytes [3, size, size]. */
function classify(question) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, ...question }, question.bitmap ? [question.bitmap] : []);
  });
}

/** Classifies the first of the files, and shows the answer unless newer files came. */
async function take(files) {
  const file = files[0];
  if (!file) return tell("That was no image file. Save the image first, then drop the file.");
  const turn = ++turns;
  let bitmap;
  try {
    // It comes upright. Training takes the numbers as they are, whatever their colour profile.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    return tell(`This browser cannot read ${file.name} as an image. What is shown is not of it.`);
  }
  if (turn < shown) return;
  shown = turn;
  forget();
  tell("Looking …");
  preview(bitmap, file.name);
  try {
    const result = await classify({ bitmap });
    if (turn === shown) present(result);
  } catch {
    if (turn !== shown) return;
    element("seen").width = network.size; // clears the pixels of an earlier image
    tell(`This browser cannot classify ${file.name}. Try a smaller image, or another browser.`);
  }
}

/** Removes the answer for an earlier image. */
function forget() {
  answer = undefined;
  maps = [];
  document.body.classList.remove("answered", "unsure");
  for (const row of element("bars").children) {
    const [label, number, bar] = row.children;
    label.lastElementChild.textContent = number.textContent = "";
    bar.style.setProperty("--share", 0);
  }
}

/** Shows `text`, and before it an answer in bold. */
function tell(text, answer = "") {
  const bold = document.createElement("b");
  bold.textContent = answer;
  element("status").replaceChildren(bold, text);
}

function preview(bitmap, name) {
  const canvas = element("picture"), shrink = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, bitmap.width * shrink);
  canvas.height = Math.max(1, bitmap.height * shrink);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", name);
  document.body.classList.add("given");
  document.body.style.setProperty("--map", 0); // until its own map is there
}

/** Lays the map of the chosen class over the image: red raises its score, blue lowers it. */
function overlay() {
  if (!maps.length) return;
  const place = document.querySelector("[name=map]:checked").value, map = maps[place];
  const limit = Math.max(...maps.flatMap(({ data }) => [...data.map(Math.abs)])) || 1;
  const small = new OffscreenCanvas(map.width, map.height), image = new ImageData(map.width, map.height);
  map.data.forEach((value, i) => {
    const color = network.map_colors[value > 0 ? 0 : 1];
    image.data.set([...color, 255 * Math.abs(value) / limit], 4 * i);
  });
  small.getContext("2d").putImageData(image, 0, 0);
  const canvas = element("map"), { width, height } = element("picture");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, width, height);
  element("of").textContent = document.querySelectorAll("#bars .name")[place].textContent;
  document.body.style.setProperty("--map", element("strength").value / 100);
}

function present({ pixels, logits, maps: ofClasses, milliseconds }) {
  const canvas = element("seen"), area = network.size ** 2;
  const image = new ImageData(network.size, network.size);
  for (let i = 0; i < area; i++)
    image.data.set([pixels[i], pixels[i + area], pixels[i + 2 * area], 255], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
  const most = Math.max(...logits), powers = logits.map((logit) => Math.exp(logit - most));
  const total = powers.reduce((a, b) => a + b);
  const ranking = ranked(logits).map((label) => ({ name: network.classes[label], share: powers[label] / total }));
  const rows = element("bars").children;
  ranking.slice(0, rows.length).forEach(({ name, share }, place) => {
    const [label, number, bar] = rows[place].children;
    label.lastElementChild.textContent = name;
    number.textContent = percent(share);
    bar.style.setProperty("--share", share);
  });
  document.body.classList.add("answered");
  maps = ofClasses;
  if (maps.length) {
    document.querySelector("[name=map]").checked = true;
    overlay();
  }
  answer = { ...ranking[0], milliseconds };
  say();
}

/** `name` apart from the words around it: it may run from right to left. */
function apart(name) {
  return `\u2068${name}\u2069`;
}

/** Says the answer, or that its share is below the threshold. */
function say() {
  const { value } = element("threshold");
  element("least").textContent = `${value} %`;
  element("effect").textContent = effect(value / 100);
  if (!answer) return;
  const unsure = answer.share < value / 100;
  document.body.classList.toggle("unsure", unsure);
  const words = `${unsure ? "Unsure, at best " : ""}${apart(answer.name)}, ${percent(answer.share)}`;
  tell(`. Answered in ${Math.round(answer.milliseconds)} ms.`, words);
}

/** A share that was counted, in percent: unlike a probability, it can be all. */
function counted(share) {
  return share === 1 ? "100 %" : percent(share);
}

/** What the highest measured threshold up to `limit` lets through, in words; empty if none was measured. */
function effect(limit) {
  const row = network.thresholds.findLast(([threshold]) => threshold <= limit);
  if (!row) return "";
  const [threshold, answered, accuracy] = row, limitInWords = `${Math.round(100 * threshold)} %`;
  const which = threshold
    ? `${counted(answered)} of the test images reach ${limitInWords}`
    : "Without a limit it answers all test images";
  const right = accuracy === null ? "" : `; ${counted(accuracy)} of these answers are right`;
  return `${which}${right}. `.replaceAll(" %", "\u00a0%");
}

function percent(share) {
  if (share < 0.001) return "< 0.1 %";
  return share > 0.999 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;
}

if (typeof document === "undefined") serve();
else show();
