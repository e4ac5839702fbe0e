"use strict";

// This text runs twice: as the script of the page, and as its worker, which has no document.
// So the page never freezes while the network computes.

// --- the network: numbers are in Float32Arrays [channels, height, width] ---

const LAYERS = {
  convolution([x], layer, weights) {
    const { kernel_size: size, stride, padding, dilation, groups, out } = layer;
    const side = (n) => Math.floor((n + 2 * padding - dilation * (size - 1) - 1) / stride) + 1;
    const y = tensor(out, side(x.height), side(x.width));
    const inputs = x.channels / groups, outputs = out / groups;
    const taps = inputs * size * size, area = y.height * y.width;
    const inPlace = size === 1 && stride === 1 && padding === 0;
    const patches = inPlace ? null : new Float32Array(taps * area);
    for (let o = 0; o < out; o++) {
      const first = Math.floor(o / outputs) * inputs; // the first channel of the group
      if (!inPlace && o % outputs === 0) layPatches(patches, x, first, inputs, layer, y);
      const rows = inPlace ? x.data.subarray(first * area, (first + inputs) * area) : patches;
      const sums = y.data.subarray(o * area, (o + 1) * area).fill(weights[layer.bias + o]);
      const start = layer.weight + o * taps;
      addProducts(sums, rows, weights.subarray(start, start + taps));
    }
    return y;
  },
  maxpool([x], { size }) {
    const y = tensor(x.channels, Math.floor(x.height / size), Math.floor(x.width / size));
    let i = 0;
    for (let c = 0; c < y.channels; c++)
      for (let row = 0; row < y.height; row++)
        for (let column = 0; column < y.width; column++, i++) {
          let most = -Infinity;
          for (let dy = 0; dy < size; dy++) {
            const from = (c * x.height + row * size + dy) * x.width + column * size;
            for (let dx = 0; dx < size; dx++) most = Math.max(most, x.data[from + dx]);
          }
          y.data[i] = most;
        }
    return y;
  },
  relu: ([x]) => each(x, (value) => Math.max(value, 0)),
  sigmoid: ([x]) => each(x, (value) => 1 / (1 + Math.exp(-value))),
  add: (inputs) => both(inputs, (a, b) => a + b),
  multiply: (inputs) => both(inputs, (a, b) => a * b),
  mean: ([x]) => ofChannels(x, (values) => values.reduce((a, b) => a + b, 0) / values.length),
  max: ([x]) => ofChannels(x, (values) => values.reduce((a, b) => Math.max(a, b))),
};

function tensor(channels, height, width) {
  return { channels, height, width, data: new Float32Array(channels * height * width) };
}

function each(x, compute) {
  return { ...x, data: x.data.map(compute) };
}

/** Combines two tensors; one of them may have one value for each channel of the other. */
function both(inputs, compute) {
  const [a, b] = inputs[0].data.length < inputs[1].data.length ? inputs.toReversed() : inputs;
  const repeated = a.data.length / b.data.length;
  return { ...a, data: a.data.map((value, i) => compute(value, b.data[Math.floor(i / repeated)])) };
}

function ofChannels(x, compute) {
  const y = tensor(x.channels, 1, 1), area = x.height * x.width;
  y.data.forEach((_, c) => (y.data[c] = compute(x.data.subarray(c * area, (c + 1) * area))));
  return y;
}

/** Lays out what each tap of the kernel meets, one row a tap: patches [taps, height * width of y]. */
function layPatches(patches, x, first, inputs, { kernel_size: size, stride, padding, dilation }, y) {
  let i = 0;
  for (let c = first; c < first + inputs; c++)
    for (let tap = 0; tap < size * size; tap++) {
      const down = Math.floor(tap / size) * dilation - padding;
      const right = (tap % size) * dilation - padding;
      for (let row = 0; row < y.height; row++) {
        const from = row * stride + down, start = (c * x.height + from) * x.width;
        const inside = from >= 0 && from < x.height;
        for (let column = 0, at = right; column < y.width; column++, at += stride)
          patches[i++] = inside && at >= 0 && at < x.width ? x.data[start + at] : 0;
      }
    }
}

/** Adds kernel [taps] times rows [taps, n] to sums [n]. Four rows at once: it is faster. */
function addProducts(sums, rows, kernel) {
  const n = sums.length, even = kernel.length - (kernel.length % 4);
  for (let tap = 0; tap < even; tap += 4) {
    const a = kernel[tap], b = kernel[tap + 1], c = kernel[tap + 2], d = kernel[tap + 3];
    for (let i = 0, p = tap * n, q = p + n, r = q + n, s = r + n; i < n; i++)
      sums[i] += a * rows[p + i] + b * rows[q + i] + c * rows[r + i] + d * rows[s + i];
  }
  for (let tap = even; tap < kernel.length; tap++) {
    const a = kernel[tap];
    for (let i = 0, p = tap * n; i < n; i++) sums[i] += a * rows[p + i];
  }
}

/** The values of all layers for an image, bytes [3, size, size]; the last one holds the logits. */
function run(network, weights, pixels) {
  const image = tensor(3, network.size, network.size), area = network.size ** 2;
  pixels.forEach((value, i) => {
    const c = Math.floor(i / area);
    image.data[i] = (value / 255 - network.mean[c]) / network.std[c];
  });
  const values = [image];
  for (const layer of network.layers)
    values.push(LAYERS[layer.kind](layer.of.map((i) => values[i]), layer, weights));
  return values;
}

/** The class indices, the highest logit first. */
function ranked(logits) {
  return [...logits.keys()].sort((a, b) => logits[b] - logits[a]);
}

/** The class activation map of a class: its mean, plus the bias of the head, is the logit. */
function classMap(features, label, head, weights) {
  const start = head.weight + label * features.channels;
  const map = tensor(1, features.height, features.width);
  addProducts(map.data, features.data, weights.subarray(start, start + features.channels));
  return map;
}

// --- an image of any size -> bytes [3, side, side], as in training ---

/** Resizes as Pillow does: bicubic, after averaging whole blocks of an image that is much larger. */
function squeezed({ data, width, height }, side) {
  const [across, down] = [width, height].map((n) => Math.max(1, Math.floor(n / side / 3)));
  const columns = Math.ceil(width / across), rows = Math.ceil(height / down);
  const sums = [0, 1, 2].map(() => new Float64Array(rows * columns));
  for (let y = 0, i = 0; y < height; y++) {
    let block = Math.floor(y / down) * columns;
    for (let x = 0; x < width; block++) {
      let red = 0, green = 0, blue = 0;
      for (const end = Math.min(x + across, width); x < end; x++, i += 4) {
        red += data[i];
        green += data[i + 1];
        blue += data[i + 2];
      }
      sums[0][block] += red;
      sums[1][block] += green;
      sums[2][block] += blue;
    }
  }
  const pixels = new Uint8Array(3 * side * side);
  sums.forEach((plane, c) => {
    const means = plane.map((sum, i) => {
      const x = i % columns, y = Math.floor(i / columns);
      const wide = Math.min(across, width - x * across), high = Math.min(down, height - y * down);
      return Math.round(sum / (wide * high));
    });
    const narrow = stretched(means, columns, rows, side, width / across);
    pixels.set(stretched(narrow, rows, side, side, height / down), c * side * side);
  });
  return pixels;
}

/**
 * Resizes lines [count, length] to [side, count], turned: twice it resizes a plane. `extent` is the
 * part of `length` that they cover.
 */
function stretched(lines, length, count, side, extent) {
  const result = new Uint8ClampedArray(side * count); // it limits
  const scale = extent / side, spread = Math.max(scale, 1);
  for (let to = 0; to < side; to++) {
    const centre = (to + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - 2 * spread + 0.5));
    const end = Math.min(length, Math.floor(centre + 2 * spread + 0.5));
    const shares = [];
    for (let i = first; i < end; i++) shares.push(cubic((i - centre + 0.5) / spread));
    const total = shares.reduce((a, b) => a + b);
    for (let line = 0; line < count; line++) {
      const start = line * length + first;
      const sum = shares.reduce((sum, share, i) => sum + share * lines[start + i], 0);
      result[to * count + line] = Math.floor(sum / total + 0.5);
    }
  }
  return result;
}

/** Keys's kernel with a = -0.5, as in Pillow. */
function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/** The colours of an image; what is transparent becomes black. Some phones have no larger canvas. */
function drawn(bitmap) {
  const shrink = Math.min(1, Math.sqrt(2 ** 24 / (bitmap.width * bitmap.height)));
  const [width, height] = [bitmap.width, bitmap.height].map((n) => Math.ceil(n * shrink));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

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
let worker, network, answer, maps = [], asked = 0, turns = 0;

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
  const turn = ++turns, file = files[0];
  if (!file) return tell("That was no image file. Save the image first, then drop the file.");
  try {
    // It comes upright. Training takes the numbers as they are, whatever their colour profile.
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    if (turn !== turns) return;
    answer = undefined;
    tell("Looking …");
    preview(bitmap, file.name);
    const result = await classify({ bitmap });
    if (turn === turns) present(result);
  } catch {
    if (turn === turns) tell(`This browser cannot read ${file.name} as an image. What is shown is not of it.`);
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

/** Lays the map of the chosen class over the image: red speaks for the class, blue against it. */
function overlay() {
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

/** Says the answer, or that its share is below the threshold. */
function say() {
  const { value } = element("threshold");
  element("least").textContent = `${value} %`;
  element("effect").textContent = effect(value / 100);
  if (!answer) return;
  const unsure = answer.share < value / 100;
  document.body.classList.toggle("unsure", unsure);
  const words = `${unsure ? "Unsure, at best " : ""}${answer.name}, ${percent(answer.share)}`;
  tell(`. Answered in ${Math.round(answer.milliseconds)} ms.`, words);
}

/** What the highest measured threshold up to `limit` lets through, in words; empty if none was measured. */
function effect(limit) {
  const row = network.thresholds.findLast(([threshold]) => threshold <= limit);
  if (!row) return "";
  const [threshold, answered, accuracy] = row, limitInWords = `${Math.round(100 * threshold)} %`;
  const which = threshold
    ? `${percent(answered)} of the test images reach ${limitInWords}`
    : "Without a limit it answers all test images";
  const right = accuracy === null ? "" : `; ${percent(accuracy)} of these answers are right`;
  return `${which}${right}. `.replaceAll(" %", "\u00a0%");
}

function percent(share) {
  if (share < 0.001) return "< 0.1 %";
  return share > 0.999 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;
}

if (typeof document === "undefined") serve();
else show();
