// A map of cells (spec.py says what of): the cells on one canvas, the words as SVG.
// Hover, click, or focus it and go about with the arrow keys; Enter is a click.

const SVG = "http://www.w3.org/2000/svg";
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SMALLEST = 0.65;
const grids = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".grid");
  if (!grids.has(root)) grids.set(root, new Grid(root));
  grids.get(root).show(data, (picked) => setTriggerValue("picked", picked));
}

class Grid {
  constructor(root) {
    this.root = root;
    this.sheet = part(root, "sheet");
    this.canvas = this.sheet.appendChild(document.createElement("canvas"));
    this.svg = this.sheet.appendChild(document.createElementNS(SVG, "svg"));
    this.words = part(this.sheet, "words");
    this.spoken = part(this.sheet, "spoken");
    this.spoken.setAttribute("aria-live", "polite");
    this.room = root.clientWidth;
    new ResizeObserver(([{ contentRect }]) => {
      this.room = contentRect.width;
      this.fit();
    }).observe(root);
    root.addEventListener("mousemove", (event) => this.hover(this.under(event)));
    root.addEventListener("mouseleave", () => this.hover(null));
    root.addEventListener("click", (event) => this.pick(this.under(event)));
    root.addEventListener("keydown", (event) => this.press(event));
    root.addEventListener("blur", () => this.go(null));
  }

  show(data, picked) {
    this.data = data;
    this.picked = picked;
    this.root.setAttribute("aria-label", data.label);
    const { width, height, ink, panels, bars, notes } = data;
    const drawing = JSON.stringify([width, height, ink, panels, bars, notes]);
    if (drawing !== this.drawing) {
      this.drawing = drawing;
      this.panels = data.panels.map((panel) => new Panel(panel));
      this.at = null;
      this.paint();
    }
    this.frame(data.marks);
    this.hover(null);
    this.fit();
  }

  // Smaller where there is less room, as far as its words can be read.
  fit() {
    this.scale = Math.max(SMALLEST, Math.min(1, this.room / this.data.width));
    // Where the cells are, for whoever drives the page: [left, top, width, height] by panel.
    const places = this.panels.map(({ left, top, wide, high }) => [left, top, wide, high]);
    this.root.dataset.cells = JSON.stringify(places.map((place) => place.map((n) => n * this.scale)));
    this.sheet.style.transform = `scale(${this.scale})`;
    this.root.style.height = `${this.data.height * this.scale}px`;
  }

  paint() {
    const { width, height } = this.data;
    const sharp = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: width * sharp, height: height * sharp });
    for (const element of [this.canvas, this.svg]) {
      element.style.width = `${width}px`;
      element.style.height = `${height}px`;
    }
    const pen = this.canvas.getContext("2d");
    pen.scale(sharp, sharp);
    this.panels.forEach((panel) => panel.paint(pen));
    this.data.bars.forEach((bar) => paintBar(pen, bar));
    this.letter([
      ...this.panels.flatMap((panel) => panel.texts()),
      ...this.data.notes,
      ...this.data.bars.flatMap(barTexts),
    ]);
  }

  // The words anew, unless they are those that stand there: another head, the same tokens.
  letter(texts) {
    const lettering = JSON.stringify([texts, this.data.ink]);
    if (lettering === this.lettering) return;
    this.lettering = lettering;
    this.svg.replaceChildren(...texts.map((words) => label(words, this.data.ink)));
    this.frames = this.svg.appendChild(document.createElementNS(SVG, "g"));
    this.cursor = this.svg.appendChild(document.createElementNS(SVG, "g"));
  }

  frame(marks) {
    const boxes = marks.flatMap(([panel, x, y]) =>
      (panel < 0 ? this.panels : [this.panels[panel]]).map((one) => one.box(x, y)),
    );
    this.frames.replaceChildren(...boxes.map((box) => outline(visible(box), "frame")));
  }

  under(event) {
    const place = this.canvas.getBoundingClientRect();
    const left = (event.clientX - place.left) / this.scale;
    const top = (event.clientY - place.top) / this.scale;
    for (const [number, panel] of this.panels.entries()) {
      const cell = panel.under(left, top);
      if (cell !== null) return { number, panel, ...cell };
    }
    return null;
  }

  hover(cell) {
    this.words.style.display = cell === null ? "none" : "block";
    this.root.style.cursor = cell && this.data.clickable ? "pointer" : "default";
    if (cell === null) return;
    const box = cell.panel.box(cell.x, cell.y);
    this.words.textContent = cell.panel.say(cell.cell);
    const right = box.left + box.width + 8 + this.words.offsetWidth < this.data.width;
    const left = right ? box.left + box.width + 8 : box.left - 8 - this.words.offsetWidth;
    const lowest = this.data.height - this.words.offsetHeight - 2;
    this.words.style.left = `${Math.max(0, left)}px`;
    this.words.style.top = `${Math.max(0, Math.min(box.top, lowest))}px`;
  }

  pick(cell) {
    if (cell === null || !this.data.clickable) return;
    const { marks } = this.data;
    // The frame at once, where there is one that follows the click; the server's answer is the same.
    if (marks.length === 1) this.frame([[Math.min(marks[0][0], cell.number), cell.x, cell.y]]);
    this.picked({ panel: cell.number, cell: cell.cell });
  }

  press(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") this.go(null);
    if ((event.key === "Enter" || event.key === " ") && this.at) {
      event.preventDefault();
      this.pick(this.at);
    }
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    this.go(this.at ? this.next(this.at, step) : this.first());
  }

  first() {
    const [number, x, y] = this.data.marks[0] ?? [0, 0, 0];
    const panel = this.panels[Math.max(0, number)];
    const cell = panel.cell(x, y) ?? panel.any();
    return cell && { number: this.panels.indexOf(panel), panel, ...cell };
  }

  next({ number, panel, x, y }, [across, down]) {
    for (let i = 1; i <= Math.max(panel.columns, panel.rows); i++) {
      const cell = panel.cell(x + i * across, y + i * down);
      if (cell) return { number, panel, ...cell };
    }
    const beside = this.panels[number + across];
    if (across && beside) {
      for (let i = 0; i < beside.columns; i++) {
        const cell = beside.cell(across > 0 ? i : beside.columns - 1 - i, y);
        if (cell) return { number: number + across, panel: beside, ...cell };
      }
    }
    return this.at;
  }

  // Where the map is wider than its room.
  reveal({ panel, x, y }) {
    const left = panel.box(x, y).left * this.scale;
    const seen = left >= this.root.scrollLeft && left + panel.wide <= this.root.scrollLeft + this.room;
    if (!seen) this.root.scrollLeft = left - this.room / 2;
  }

  go(cell) {
    this.at = cell;
    if (cell) this.reveal(cell);
    this.cursor?.replaceChildren(...(cell ? [outline(cell.panel.box(cell.x, cell.y), "cursor")] : []));
    this.spoken.textContent = cell ? cell.panel.say(cell.cell) : "";
    this.hover(cell);
  }
}

// A part of the map: cells in columns and rows, either single ones or all of a matrix.
class Panel {
  constructor(given) {
    Object.assign(this, given);
    this.wide = this.width / this.columns;
    this.high = this.height / this.rows;
    this.colours = ramp(this.scale);
    if (this.matrix) {
      this.value = floats(this.matrix);
      this.shownValue = this.shown ? floats(this.shown) : this.value;
    } else {
      this.cells = new Map(this.x.map((x, i) => [this.y[i] * this.columns + x, i]));
    }
  }

  cell(x, y) {
    if (x < 0 || y < 0 || x >= this.columns || y >= this.rows) return null;
    const place = y * this.columns + x;
    if (this.matrix) return Number.isNaN(this.value[place]) ? null : { x, y, cell: place };
    return this.cells.has(place) ? { x, y, cell: this.cells.get(place) } : null;
  }

  any() {
    for (let y = 0; y < this.rows; y++) {
      for (let x = 0; x < this.columns; x++) {
        const cell = this.cell(x, y);
        if (cell) return cell;
      }
    }
    return null;
  }

  under(left, top) {
    return this.cell(
      Math.floor((left - this.left) / this.wide),
      Math.floor((top - this.top) / this.high),
    );
  }

  box(x, y) {
    return {
      left: this.left + x * this.wide,
      top: this.top + y * this.high,
      width: this.wide,
      height: this.high,
    };
  }

  say(cell) {
    if (!this.matrix) return this.words[cell];
    const [row, column] = [Math.floor(cell / this.columns), cell % this.columns];
    return this.template
      .replace("{row}", () => this.rowWords[row])
      .replace("{column}", () => this.columnWords[column])
      .replace("{value}", () => +this.shownValue[cell].toPrecision(3));
  }

  paint(pen) {
    if (this.matrix) this.paintMatrix(pen);
    else this.paintSquares(pen);
  }

  paintMatrix(pen) {
    if (this.ground) {
      pen.fillStyle = this.ground;
      pen.fillRect(this.left, this.top, this.width, this.height);
    }
    if (this.gap === 0 && this.wide < 8) {
      pen.imageSmoothingEnabled = false;
      pen.drawImage(this.picture(), this.left, this.top, this.width, this.height);
      return;
    }
    for (let place = 0; place < this.value.length; place++) {
      if (Number.isNaN(this.value[place])) continue;
      const box = this.box(place % this.columns, Math.floor(place / this.columns));
      pen.fillStyle = this.colours(this.value[place]);
      pen.fillRect(box.left, box.top, box.width - this.gap, box.height - this.gap);
    }
  }

  picture() {
    const small = document.createElement("canvas");
    Object.assign(small, { width: this.columns, height: this.rows });
    const pen = small.getContext("2d");
    const image = pen.createImageData(this.columns, this.rows);
    this.value.forEach((value, place) => {
      if (!Number.isNaN(value)) image.data.set([...this.colours.rgb(value), 255], 4 * place);
    });
    pen.putImageData(image, 0, 0);
    return small;
  }

  paintSquares(pen) {
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = `${this.textSize}px ${getComputedStyle(document.body).fontFamily}`;
    pen.lineWidth = 0.5;
    this.x.forEach((x, i) => {
      const [left, top] = [this.left + (x + 0.5) * this.wide, this.top + (this.y[i] + 0.5) * this.high];
      const half = this.size / 2;
      pen.fillStyle = this.colours(this.value[i]);
      pen.fillRect(left - half, top - half, this.size, this.size);
      if (this.line) {
        pen.strokeStyle = this.line;
        pen.strokeRect(left - half, top - half, this.size, this.size);
      }
      if (this.text[i]) {
        pen.fillStyle = this.textInk[i];
        pen.fillText(this.text[i], left, top + 1);
      }
    });
  }

  texts() {
    const bottom = this.top + this.height;
    const middle = this.left + this.width / 2;
    const turned = this.turned ? { turn: -90, anchor: "end" } : { anchor: "middle" };
    const longest = Math.max(0, ...this.across.map((tick) => tick.text.length));
    const foot = this.turned ? 22 + 0.58 * this.tickSize * longest : 32;
    const found = this.across.map(({ at, text }) => ({
      x: this.left + (at + 0.5) * this.wide + (this.turned ? 0.35 * this.tickSize : 0),
      y: bottom + (this.turned ? 6 : 15),
      text, size: this.tickSize, ...turned,
    }));
    for (const { at, text, bold } of this.down) {
      const y = this.top + (at + 0.5) * this.high + 0.35 * this.tickSize;
      found.push({ x: this.left - 8, y, text, bold, size: this.tickSize, anchor: "end" });
    }
    if (this.acrossTitle) found.push({ x: middle, y: bottom + foot, text: this.acrossTitle, anchor: "middle" });
    if (this.downTitle) {
      found.push({ x: 14, y: this.top + this.height / 2, text: this.downTitle, anchor: "middle", turn: -90 });
    }
    return found;
  }
}

function ramp({ stops, low, high }) {
  const known = stops.map(([at, colour]) => [at, channels(colour)]);
  const rgb = (value) => {
    const at = Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
    const above = Math.max(1, known.findIndex(([place]) => place >= at));
    const [[from, first], [to, second]] = [known[above - 1], known[above]];
    const share = (at - from) / (to - from || 1);
    return first.map((channel, i) => Math.round(channel + share * (second[i] - channel)));
  };
  const css = (value) => `rgb(${rgb(value).join(",")})`;
  css.rgb = rgb;
  return css;
}

function channels(colour) {
  if (!colour.startsWith("#")) return colour.match(/\d+/g).slice(0, 3).map(Number);
  return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
}

function paintBar(pen, { left, top, length, thickness, scale }) {
  const fill = pen.createLinearGradient(0, top + length, 0, top);
  scale.stops.forEach(([at, colour]) => fill.addColorStop(at, colour));
  pen.fillStyle = fill;
  pen.fillRect(left, top, thickness, length);
}

function barTexts({ left, top, length, thickness, scale, title, ticks, many }) {
  const { low, high } = scale;
  const shown = (ticks ?? round(low, high, many)).filter(([v]) => v >= low && v <= high);
  const place = (value) => top + length * (1 - (value - low) / (high - low || 1)) + 4;
  const x = left + thickness + 4;
  const found = shown.map(([value, text]) => ({ x, y: place(value), text, size: 11, anchor: "start" }));
  if (title) {
    const widest = 6.4 * Math.max(0, ...shown.map(([, text]) => text.length));
    // Read from the top down, and begun at the top where the bar is shorter than its title.
    const short = 6.2 * title.length > length;
    found.push({
      x: x + widest + 10, y: short ? top : top + length / 2, text: title, turn: 90,
      anchor: short ? "start" : "middle",
    });
  }
  return found;
}

function round(low, high, many) {
  const rough = (high - low || 1) / many;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-9); i++) {
    found.push([i * step, (i * step).toFixed(digits).replace("-", "−")]);
  }
  return found;
}

function floats(encoded) {
  const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

function part(parent, name) {
  const element = parent.appendChild(document.createElement("div"));
  element.className = name;
  return element;
}

function label({ x, y, text, anchor, size, bold, turn }, ink) {
  const element = document.createElementNS(SVG, "text");
  element.textContent = text;
  const place = turn ? { transform: `translate(${x} ${y}) rotate(${turn})` } : { x, y };
  const looks = { ...place, fill: ink, "text-anchor": anchor };
  Object.entries(looks).forEach(([name, value]) => element.setAttribute(name, value));
  if (size) element.style.fontSize = `${size}px`;
  if (bold) element.style.fontWeight = "700";
  return element;
}

// A frame around a very small cell is larger than the cell.
function visible({ left, top, width, height }) {
  const more = Math.max(0, 9 - width) / 2;
  return { left: left - more, top: top - more, width: width + 2 * more, height: height + 2 * more };
}

function outline({ left, top, width, height }, kind) {
  const element = document.createElementNS(SVG, "rect");
  const looks = { class: kind, x: left + 0.5, y: top + 0.5, width: width - 1, height: height - 1 };
  Object.entries(looks).forEach(([name, value]) => element.setAttribute(name, value));
  return element;
}
