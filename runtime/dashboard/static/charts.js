// Charts over steps or over the time of day, drawn with uPlot. All charts share one axis, one range and one cursor.
import { clock, h, moment, number } from "./dom.js";
import { saveCsv, saveJson, savePng } from "./download.js";
import { explainAll } from "./explain.js";
import { store, timesOfSteps } from "./store.js";

const HEIGHT = 190, SOON = 200;
const shared = { range: null, axis: "step", charts: new Set() };

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Shows the same range of steps in every chart; null shows all steps.
export function showRange(range) {
  shared.range = range;
  for (const chart of shared.charts) chart.refresh();
  document.dispatchEvent(new CustomEvent("range", { detail: range }));
}

// Shows all charts over "step" or over "time", the wall clock.
export function showAxis(axis) {
  shared.axis = axis;
  for (const chart of shared.charts) chart.drop();
  showRange(null);
}

// One chart in a card. `read()` returns {x, lines: [{label, colour, y, …}]}, or null while there is nothing to draw.
// `own`: it shares neither axis nor range nor cursor with the others; its x are numbers as they come.
// x are steps. `meanings` are the [label, key] of its figures, for the tooltip.
export class Chart {
  constructor({ title, note = "", read, kind = "step", meanings = [], height = HEIGHT, log = false, zero = false, bars = false, own = false }) {
    Object.assign(this, { title, read, height, log, zero, bars, own, plot: null, shape: "" });
    const about = explainAll(kind, meanings), meaning = h("p", { class: "meaning muted", hidden: true }, about);
    const explained = about && h("button", { class: "quiet", title: about, "aria-label": `what ${title} means`, onclick: () => { meaning.hidden = !meaning.hidden; } }, "?");
    this.legend = h("div", { class: "legend" });
    this.place = h("div", { class: "plot" });
    this.card = h("section", { class: "card chart", hidden: true, "aria-label": title },
      h("h2", { title: about || undefined }, title, note && h("small", {}, note), h("span", { class: "grow" }), explained, this.saving()), meaning, this.legend, this.place);
    this.watch = new ResizeObserver(() => this.resize());
  }

  saving() {
    const save = (label, act) => h("button", { class: "quiet", "aria-label": `download ${this.title} as ${label}`, onclick: act }, label);
    return h("details", { class: "saving" }, h("summary", { title: "download" }, "⤓"), h("div", { class: "card" },
      save("CSV", () => saveCsv(this.title, this.table())), save("JSON", () => saveJson(this.title, this.table())),
      save("PNG", () => savePng(this.title, this.plot.ctx.canvas, colour("card"), colour("text")))));
  }

  // The numbers that are drawn, by column; lines that only repeat another one are left out.
  table() {
    const lines = this.lines.filter((line) => !line.silent);
    return { [this.own ? "x" : "step"]: this.steps, ...(this.own ? {} : { time: this.times }), ...Object.fromEntries(lines.map((line) => [line.label, line.shown ?? line.y])) };
  }

  mount() {
    shared.charts.add(this);
    this.watch.observe(this.place);
  }

  unmount() {
    shared.charts.delete(this);
    this.watch.disconnect();
    this.drop();
  }

  drop() {
    this.plot?.destroy();
    this.plot = null;
  }

  resize() {
    const width = this.place.clientWidth;
    if (this.plot && width && Math.abs(width - this.plot.width) > 1) this.plot.setSize({ width, height: this.height });
  }

  // Draws the current data. If the shape has changed (another line, another theme), builds the chart again.
  refresh() {
    const content = this.read();
    this.card.hidden = !content;
    if (!content) return this.drop();
    this.take(content);
    const shape = JSON.stringify(this.lines.map(({ y, shown, ...rest }) => rest));
    if (!this.plot || shape !== this.shape) {
      this.drop();
      this.shape = shape;
      this.plot = new uPlot(this.options(), this.data(), this.place);
    } else this.plot.setData(this.data());
    this.describe(this.plot.cursor.idx);
  }

  // Takes the data over. On the axis of time it is in order of time, without points whose time is not known.
  take(content) {
    this.steps = content.x;
    this.lines = content.lines;
    if (!this.byTime) return;
    const times = this.times;
    const order = content.x.map((_, i) => i).filter((i) => times[i] !== null).sort((a, b) => times[a] - times[b]);
    const sorted = (values) => order.map((i) => values[i]);
    this.steps = sorted(content.x);
    this.lines = content.lines.map((line) => ({ ...line, y: sorted(line.y), ...(line.shown && { shown: sorted(line.shown) }) }));
  }

  // When each step ended; null where that is not known.
  get times() {
    const known = timesOfSteps();
    return this.steps.map((step) => known.get(step) ?? null);
  }

  get byTime() {
    return shared.axis === "time" && !this.own;
  }

  data() {
    return [this.byTime ? this.times : this.steps, ...this.lines.map((line) => line.y)];
  }

  // The range of all steps. Bars are centred on their step, so they need half a step more.
  whole(low, high) {
    if (this.byTime) return low === high ? [low - 60, high + 60] : [low, high];
    const room = low === high ? 1 : this.bars ? 0.6 : 0;
    return [low - room, high + room];
  }

  options() {
    const text = colour("muted"), grid = { stroke: colour("grid"), width: 1 };
    const axis = { stroke: text, grid, ticks: { ...grid, size: 4 }, font: "11px system-ui, sans-serif" };
    return {
      width: this.place.clientWidth || 400, height: this.height, legend: { show: false }, padding: [8, 8, 0, 0],
      cursor: {
        y: false, ...(this.own ? { drag: { x: true, y: false } } : { sync: { key: "steps" }, drag: { x: true, y: false, setScale: false }, bind: { dblclick: () => () => showRange(null) } }),
        points: { size: 6 },
      },
      scales: {
        x: { time: this.byTime, range: (u, low, high) => (this.own ? this.whole(low, high) : shared.range ?? this.whole(low, high)) },
        y: this.log ? { distr: 3 } : { range: this.zero ? fromZero : around },
      },
      axes: [
        this.own ? { ...axis, size: 26, gap: 3 } : this.byTime ? { ...axis, size: 26, gap: 3, space: 90, values: (u, ticks) => ticks.map((t) => clock(t, ticks.at(-1) - ticks[0])) }
          : { ...axis, size: 26, gap: 3, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5] },
        { ...axis, size: 56, gap: 4, values: (u, ticks) => ticks.map((v) => (v === null ? "" : number(v, 3))) },
      ],
      series: [{}, ...this.lines.map((line) => this.seriesOf(line))],
      hooks: {
        setCursor: [(u) => this.describe(u.cursor.idx)],
        setSelect: this.own ? [] : [(u) => select(u)],
        draw: this.own ? [] : [drawLives],
      },
    };
  }

  seriesOf(line) {
    const stroke = colour(line.colour);
    return {
      label: line.label, spanGaps: !!(line.points || line.spans), width: line.width ?? 1.6,
      stroke: line.faint ? `${stroke}59` : stroke,
      fill: line.filled ? stroke : undefined,
      dash: line.dash, points: { show: !!line.points, size: 6, fill: stroke, stroke },
      paths: line.filled ? (this.byTime ? uPlot.paths.linear() : stackPaths) : undefined,
    };
  }

  // Shows the values under the cursor in the legend, or the last ones if there is no cursor.
  describe(at) {
    const lines = this.bars ? this.lines.toReversed() : this.lines;
    const items = lines.filter((line) => !line.silent).map((line) => {
      const values = line.shown ?? line.y;
      const value = at === null || at === undefined ? values.findLast((v) => v !== null && v !== undefined) : values[at];
      return h("span", {}, h("i", { colour: colour(line.colour) }), line.label, " ", h("b", {}, number(value)));
    });
    const step = at === null || at === undefined ? null : this.steps[at];
    const time = this.byTime && step !== null ? `, ${moment(timesOfSteps().get(step))}` : "";
    this.legend.replaceChildren(...items, step === null || step === undefined ? "" : h("span", {}, this.own ? "at " : "step ", h("b", {}, this.own ? number(step) : String(step)), time));
  }
}

const fromZero = (u, low, high) => [0, high > 0 ? high * 1.08 : 1];

// A constant line is drawn in the middle of a range as large as its value.
function around(u, low, high) {
  if (low === null) return [0, 1];
  if (low === high) return [low - (Math.abs(low) / 2 || 0.5), high + (Math.abs(high) / 2 || 0.5)];
  return uPlot.rangeNum(low, high, 0.1, false);
}

// Draws bars, or an outline if there are too many bars to tell apart.
function stackPaths(u, series, first, last) {
  const draw = last - first <= 250 ? uPlot.paths.bars({ size: [0.86, 40] }) : uPlot.paths.linear();
  return draw(u, series, first, last);
}

function select(u) {
  const { left, width } = u.select;
  if (width < 4) return;
  const range = [u.posToVal(left, "x"), u.posToVal(left + width, "x")];
  u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
  if (range[1] - range[0] >= 0.5) showRange(range);
}

// Draws a dashed line where the run was resumed after an interruption.
function drawLives(u) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.strokeStyle = colour("c5");
  ctx.setLineDash([4, 4]);
  for (const life of store.lives) {
    const x = u.valToPos(shared.axis === "time" ? life.time : life.step, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

// An exponential moving average without a bias towards its start. `weight` is the weight of the past, 0 to 1. For more
// than SOON steps it covers the same part of the chart, not the same number of steps: in a chart of ten thousand steps a
// mean over ten would smooth nothing.
export function smooth(values, setting) {
  const weight = setting ** Math.min(1, SOON / Math.max(1, values.length));
  let sum = 0, mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}
