// The data of the run. Polling adds the news; nothing is requested twice.
import { askJson } from "./dom.js";

const RECENT = 20;

// Records of one kind, as columns. A record replaces an earlier one with the same key: a step that was done again.
export class Series {
  constructor(keyOf) {
    this.keyOf = keyOf;
    this.clear();
  }

  clear() {
    this.length = 0;
    this.next = 0;
    this.columns = {};
    this.places = new Map();
  }

  take(page) {
    const names = Object.keys(page.columns);
    const size = names.length ? page.columns[names[0]].length : 0;
    for (const name of names) this.columns[name] ??= new Array(this.length).fill(null);
    for (let i = 0; i < size; i++) {
      const key = this.keyOf(page.columns, i);
      let place = this.places.get(key);
      if (place === undefined) this.places.set(key, (place = this.length++));
      for (const name in this.columns) this.columns[name][place] = page.columns[name]?.[i] ?? null;
    }
    this.next = page.next;
    return size > 0;
  }

  has(name) {
    return name in this.columns;
  }

  // A column as numbers, with null for every other value.
  column(name) {
    return (this.columns[name] ?? new Array(this.length).fill(null)).map((v) => (typeof v === "number" ? v : null));
  }

  last(name) {
    return this.length ? this.columns[name]?.[this.length - 1] ?? null : null;
  }

  mean(name, over = RECENT) {
    const values = (this.columns[name] ?? []).slice(-over).filter((v) => typeof v === "number");
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  }
}

const byStep = (columns, i) => columns.step[i];
const byVersion = (columns, i) => columns.version[i];

export const store = {
  epoch: "",
  run: null,
  series: {
    step: new Series(byStep),
    eval: new Series((columns, i) => `${columns.step[i]} ${columns.when[i]} ${columns.set[i]}`),
    stage_step: new Series(byStep),
    stage_eval: new Series((columns, i) => `${columns.step[i]} ${columns.stage[i]}`),
    sync: new Series(byVersion),
    checkpoint: new Series(byVersion),
  },
  events: [],
  eventsNext: 0,
  processes: { version: -1, columns: { name: [] } },
  times: null,  // step -> seconds since 1970, made when it is first asked for
  lives: [],  // steps at which the run was resumed after an interruption
};

// Requests the news. Returns which parts have changed, and whether there is more to read.
export async function poll() {
  const since = Object.fromEntries(Object.entries(store.series).map(([kind, series]) => [kind, series.next]));
  const answer = await askJson("poll", {
    epoch: store.epoch, ...since, event: store.eventsNext, processes: store.processes.version,
  });
  const changed = new Set(["run"]);
  store.times = null;
  if (answer.epoch !== store.epoch) {
    for (const series of Object.values(store.series)) series.clear();
    store.events = [];
    store.epoch = answer.epoch;
  }
  store.run = answer.run;
  let more = answer.events.more || answer.run.unread > 1 << 20;
  for (const [kind, page] of Object.entries(answer.series)) {
    if (store.series[kind].take(page)) changed.add(kind);
    more ||= page.more;
  }
  if (answer.events.rows.length) {
    store.events.push(...answer.events.rows);
    changed.add("events");
  }
  store.eventsNext = answer.events.next;
  if (answer.processes) {
    store.processes = answer.processes;
    changed.add("processes");
  }
  if (changed.has("events") || changed.has("step")) findLives();
  return { changed, more };
}

// The time of each step: when it ended, or for one that was only evaluated, when that was.
export function timesOfSteps() {
  if (store.times) return store.times;
  store.times = new Map();
  for (const kind of ["step", "stage_step", "eval"]) {
    const steps = store.series[kind].column("step"), times = store.series[kind].column("time");
    steps.forEach((step, i) => { if (times[i] !== null && !store.times.has(step)) store.times.set(step, times[i]); });
  }
  return store.times;
}

// The evaluation sets of the run, in the order in which they were first evaluated.
export const evalSets = () => [...new Set((store.series.eval.columns.set ?? []).filter((name) => name))];

// [steps, values] of one figure of an evaluation set. If a step has several evaluations, the last one counts.
export function ofSet(set, figure) {
  const { eval: held } = store.series, steps = held.column("step"), values = held.column(`${set}/${figure}`);
  const table = new Map(steps.map((step, i) => [step, values[i]]).filter(([, value]) => typeof value === "number"));
  const sorted = [...table.keys()].sort((a, b) => a - b);
  return [sorted, sorted.map((step) => table.get(step))];
}

function findLives() {
  const times = store.series.step.columns.time ?? [], steps = store.series.step.columns.step ?? [];
  let generation = null;
  store.lives = [];
  for (const event of store.events) {
    if (typeof event.generation !== "number") continue;
    if (generation !== null && event.generation > generation) {
      const place = times.findIndex((time) => time >= event.time);
      if (place >= 0) store.lives.push({ step: steps[place], time: event.time, generation: event.generation });
    }
    generation = event.generation;
  }
}

const USUAL = ["rollout", "train", "weight_sync", "checkpoint"], REST = ["wait", "other"];

// The prefix of the columns with the time of each phase: "critical_path/" if the run reports it, else "seconds/".
export const timed = () => (Object.keys(store.series.step.columns).some((name) => name.startsWith("critical_path/"))
  ? "critical_path/" : "seconds/");

// The phases of a step, in the order in which they are stacked. Time that no phase covers is "other".
export function phases() {
  const prefix = timed();
  const names = Object.keys(store.series.step.columns).filter((name) => name.startsWith(prefix))
    .map((name) => name.slice(prefix.length)).filter((name) => name !== "step" && !name.includes("/"));
  const order = (name) => (REST.includes(name) ? 99 : USUAL.indexOf(name) + 1 || 9);
  return [...names.sort((a, b) => order(a) - order(b)), ...(prefix === "seconds/" ? ["other"] : [])];
}

// The seconds of a phase in each step.
export function secondsOf(phase) {
  const step = store.series.step, prefix = timed();
  if (phase !== "other" || prefix !== "seconds/") return step.column(prefix + phase).map((v) => v ?? 0);
  const covered = phases().slice(0, -1).map((name) => step.column(prefix + name));
  return step.column("seconds/step").map((whole, i) =>
    whole === null ? null : Math.max(0, whole - covered.reduce((sum, column) => sum + (column[i] ?? 0), 0)));
}

export const partsOf = (phase) => Object.keys(store.series.step.columns)
  .filter((name) => name.startsWith(`seconds/${phase}/`)).map((name) => name.slice(`seconds/${phase}/`.length));
