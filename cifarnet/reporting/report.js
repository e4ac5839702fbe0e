'use strict';
const byId = id => document.getElementById(id);
const data = JSON.parse(byId('data').textContent);
const sheet = byId('sheet');
const percent = share => `${(100 * share).toFixed(1)}\u00a0%`;

function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

const classElement = label => element('bdi', '', data.classes[label]);

function tile(place, label) {
  const canvas = element('canvas', '');
  canvas.width = canvas.height = data.tile;
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', label);
  draw(canvas.getContext('2d'), sheet, place, data.tile);
  return canvas;
}

function draw(context, from, place, side) {
  const x = place % data.columns * side, y = Math.floor(place / data.columns) * side;
  context.drawImage(from, x, y, side, side, 0, 0, data.tile, data.tile);
}

const scratch = element('canvas', '').getContext('2d', {willReadFrequently: true});
scratch.canvas.width = scratch.canvas.height = data.tile;

function pixelsOf(from, place, side) {
  draw(scratch, from, place, side);
  return scratch.getImageData(0, 0, data.tile, data.tile);
}

// The image, or its class activation map over a grey copy: red for the class, blue against it.
function repaint(figure) {
  const view = Number(document.querySelector('.map-choice')?.value ?? 0), {place} = figure.dataset;
  const context = figure.querySelector('canvas').getContext('2d');
  if (!view || place >= data.tested) return draw(context, sheet, place, data.tile);
  const map = pixelsOf(byId('maps'), place, data.map_tile).data;
  const image = pixelsOf(sheet, place, data.tile), pixels = image.data;
  for (let i = 0; i < pixels.length; i += 4) {
    const value = (map[i + view - 1] - 128) / 127, strength = Math.min(1, Math.abs(value));
    const grey = (pixels[i] + pixels[i + 1] + pixels[i + 2]) / 3;
    const color = data.map_colors[value > 0 ? 0 : 1];
    for (let c = 0; c < 3; c++) pixels[i + c] = grey + strength * (color[c] - grey);
  }
  context.putImageData(image, 0, 0);
}

// A test or validation image with its two most probable classes.
function picture(place, tellTrue) {
  const [index, truth, predicted, second, probability, nextProbability] = data.shown[place];
  const name = place < data.tested ? data.names[place] : `validation image ${index}`;
  const right = truth === predicted;
  const caption = element('figcaption', '',
    element('div', right ? 'hit' : 'miss', `${percent(probability)} `, classElement(predicted)),
    element('div', '', `${percent(nextProbability)} `, classElement(second)));
  if (tellTrue && !right) caption.append(element('div', '', 'true: ', classElement(truth)));
  const words = `${name}: true ${data.classes[truth]}, predicted ${data.classes[predicted]}, ` +
    `${percent(probability)}; then ${data.classes[second]}, ${percent(nextProbability)}`;
  const figure = element('figure', '', tile(place, words), caption);
  figure.title = words;
  figure.dataset.index = index;
  figure.dataset.place = place;
  repaint(figure);
  return figure;
}

// --- the confusion matrix: one stop of the Tab key; arrow keys move within it ---

const matrix = byId('matrix');
const cells = [...matrix.querySelectorAll('td button')];
const placeOf = button => [button.closest('tr').rowIndex - 1, button.parentElement.cellIndex - 1]
  .map(at => data.matrix[at]);

function show(button) {
  const [truth, predicted] = placeOf(button);
  const places = [...Array(data.tested).keys()]
    .filter(place => data.shown[place][1] === truth && data.shown[place][2] === predicted)
    .slice(0, data.most);
  const count = Number(button.value);
  byId('cell-title').replaceChildren(classElement(truth), ' predicted as ', classElement(predicted));
  byId('cell-count').textContent = (count === 1 ? '1 image' : `${count.toLocaleString('en')} images`) +
    (!places.length ? '; left out to limit the size of the page'
      : places.length < count ? `; shown: the ${places.length} most confident` : ', the most confident first');
  byId('cell-pictures').replaceChildren(...places.map(place => picture(place, false)));
  for (const other of cells) other.setAttribute('aria-pressed', other === button);
}

function start(button) {
  for (const other of cells) other.tabIndex = other === button ? 0 : -1;
}

for (const button of cells) {
  const [truth, predicted] = placeOf(button).map(label => data.classes[label]);
  const words = `true ${truth}, predicted ${predicted}: ${button.value}`;
  button.setAttribute('aria-label', words);
  button.title = words;
  button.addEventListener('click', () => {
    start(button);
    show(button);
    byId('cell-title').scrollIntoView({block: 'nearest'});  // on a phone it lies below
  });
}

matrix.addEventListener('keydown', event => {
  const moves = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
  const move = moves[event.key];
  if (!move || event.target.tagName !== 'BUTTON') return;
  event.preventDefault();
  let row = event.target.closest('tr').rowIndex, column = event.target.parentElement.cellIndex, cell;
  do {
    row += move[0];
    column += move[1];
    cell = matrix.rows[row]?.cells[column];
  } while (cell && !cell.querySelector('button'));
  // At the end of a line go to the next cell of another one.
  const next = cell?.querySelector('button') ?? cells[cells.indexOf(event.target) + move[0] + move[1]];
  if (!next) return;
  start(next);
  next.focus();
});

// --- tables that are sorted by a click ---

for (const button of document.querySelectorAll('th[aria-sort] button')) {
  button.addEventListener('click', () => {
    const head = button.parentElement, body = head.closest('table').tBodies[0];
    const direction = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
    for (const other of head.parentElement.cells) {
      if (other.hasAttribute('aria-sort')) other.setAttribute('aria-sort', 'none');
    }
    head.setAttribute('aria-sort', direction > 0 ? 'ascending' : 'descending');
    const value = row => row.cells[head.cellIndex].textContent.replace(/,/g, '').trim();
    const compare = head.classList.contains('number')
      ? (a, b) => Number(value(a)) - Number(value(b))
      : (a, b) => value(a).localeCompare(value(b));
    body.append(...[...body.rows].sort((a, b) => direction * compare(a, b)));
  });
}

// --- the curves: the figures of the epoch under the pointer ---

const charts = [...document.querySelectorAll('.chart[tabindex]')];
let epoch = data.epochs.length - 1;

function showEpoch(at) {
  epoch = Math.max(0, Math.min(data.epochs.length - 1, at));
  byId('epoch').textContent = data.epochs[epoch][1];
  for (const line of document.querySelectorAll('.cursor')) {
    line.setAttribute('x1', data.epochs[epoch][0]);
    line.setAttribute('x2', data.epochs[epoch][0]);
  }
}

for (const chart of charts) {
  const follow = event => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    const gaps = data.epochs.map(([at]) => Math.abs(at - x));
    showEpoch(gaps.indexOf(Math.min(...gaps)));
  };
  chart.addEventListener('pointerdown', follow);
  chart.addEventListener('pointermove', follow);
  chart.addEventListener('keydown', event => {
    const at = {ArrowLeft: epoch - 1, ArrowRight: epoch + 1, Home: 0, End: data.epochs.length}[event.key];
    if (at === undefined) return;
    event.preventDefault();
    showEpoch(at);
  });
}
if (charts.length) showEpoch(epoch);

for (const choice of document.querySelectorAll('.map-choice')) {
  choice.addEventListener('change', () => {
    for (const other of document.querySelectorAll('.map-choice')) other.value = choice.value;
    document.querySelectorAll('figure[data-place]').forEach(repaint);
  });
}

Promise.all([sheet, byId('maps') ?? sheet].map(image => image.decode())).then(() => {
  for (const list of document.querySelectorAll('[data-list]')) {
    list.append(...data.lists[list.dataset.list].map(place => picture(place, true)));
  }
  const {first, rows, columns} = data.augmented;
  for (let place = 0; place < rows * columns; place++) {
    const which = place % columns ? 'augmented' : 'original';
    byId('augmented').append(tile(first + place, `${which}, image ${Math.floor(place / columns) + 1}`));
  }
  document.querySelectorAll('.sample').forEach((cell, i) =>
    cell.append(tile(data.samples + i, cell.closest('tr').cells[1].textContent)));
  const mistakes = cells.filter(cell => cell.className[0] === 'm');
  const most = (mistakes.length ? mistakes : cells)
    .reduce((a, b) => Number(b.value) > Number(a.value) ? b : a);
  start(most);
  show(most);
});
