// The overview: current figures, the bottleneck, and all charts.
import { bytes, duration, h, number } from "./dom.js";
import { evalSets, ofSet, phases, partsOf, secondsOf, store } from "./store.js";
import { Chart, colour, showAxis, showRange } from "./charts.js";
import { explain } from "./explain.js";
import { distribution } from "./distribution.js";
import { figures, otherFigures, phaseColour, phaseFigure, phaseName, rewardFigure, setSmoothing } from "./figures.js";

const RECENT = 20;
const remembered = Number(localStorage.getItem("verst-smoothing") ?? 0.8);
setSmoothing(remembered);

export function overview() {
  const charts = [], others = new Set();
  const tiles = h("section", { class: "tiles", "aria-label": "current figures" });
  const rounds = h("section", { class: "card", "aria-label": "weight rounds", hidden: true });
  const grid = h("section", { class: "charts", "aria-label": "charts" });
  const own = h("section", { class: "charts", "aria-label": "your own figures" });
  const ownPart = h("div", { class: "stack", hidden: true }, h("h2", {}, "Your own figures"), own);
  const spread = h("section", { class: "card", "aria-label": "reward distribution", hidden: true });
  const table = h("section", { class: "card", "aria-label": "where the time goes" });
  const reason = h("section", { class: "card reason", role: "alert", hidden: true });
  const nothing = h("p", { class: "card empty" }, "No step has been trained yet.");
  const large = [new Chart(rewardFigure()), new Chart(phaseFigure())];
  const view = h("div", { class: "stack" }, reason, tiles, nothing, h("div", { class: "large" }, large.map((chart) => chart.card), table), tools(), grid, ownPart);

  const add = (spec, place = grid) => {
    const chart = new Chart(spec);
    charts.push(chart);
    place.append(chart.card);
    chart.mount();
  };
  const redraw = () => { for (const chart of charts) chart.refresh(); };
  const onSmoothing = () => redraw();

  return {
    view,
    mount() {
      for (const chart of large) chart.mount();
      charts.push(...large);
      grid.append(spread, rounds);
      figures().forEach((spec) => add(spec));
      document.addEventListener("smoothing", onSmoothing);
    },
    unmount() {
      for (const chart of charts) chart.unmount();
      document.removeEventListener("smoothing", onSmoothing);
    },
    update(changed) {
      reason.hidden = store.run.state !== "failed" || !store.run.why;
      reason.replaceChildren(h("b", {}, "The run failed: "), store.run.why ?? "");
      tiles.replaceChildren(...tileList());
      nothing.hidden = store.series.step.length > 0 || store.series.stage_step.length > 0;
      table.hidden = !store.series.step.has("seconds/step");
      if (!["step", "eval", "stage_step", "stage_eval", "sync", "events", "all"].some((part) => changed.has(part))) return;
      if (!table.hidden) table.replaceChildren(...timeTable());
      rounds.hidden = !store.series.sync.length;
      if (!rounds.hidden) rounds.replaceChildren(...weightRounds());
      for (const { id, own: isOwn, spec } of otherFigures(others)) {
        others.add(id);
        add(spec, isOwn ? own : grid);
      }
      ownPart.hidden = !own.childElementCount;
      spread.hidden = !store.run.rewards.last;
      if (!spread.hidden) spread.replaceChildren(...distribution(store.run.rewards));
      redraw();
    },
  };
}

function tools() {
  const shown = h("b", {}, String(remembered));
  const slider = h("input", {
    type: "range", min: "0", max: "0.98", step: "0.02", value: String(remembered), "aria-label": "smoothing",
    oninput: () => {
      setSmoothing(Number(slider.value));
      shown.textContent = slider.value;
      localStorage.setItem("verst-smoothing", slider.value);
      document.dispatchEvent(new Event("smoothing"));
    },
  });
  const all = h("button", { onclick: () => showRange(null), disabled: true, title: "or double-click a chart" }, "All steps");
  document.addEventListener("range", (event) => { all.disabled = !event.detail; });
  const axis = h("select", { "aria-label": "axis", onchange: () => showAxis(axis.value) },
    h("option", { value: "step" }, "steps"), h("option", { value: "time" }, "time of day"));
  return h("div", { class: "row" }, h("label", {}, "Smoothing", slider, shown), h("label", {}, "over", axis), all,
    h("span", { class: "muted" }, "drag over a chart to zoom in; a dashed red line marks where the run was resumed"));
}

function tile(label, value, small = "", mood = "", meaning = undefined) {
  return h("div", { class: "card tile", "data-tile": label, title: meaning }, h("span", {}, label), h("b", {}, value), h("small", { class: mood }, small));
}

function tileList() {
  const step = store.series.step, held = store.series.eval, run = store.run;
  const recent = (name) => (step.length > 1 ? `mean of ${Math.min(RECENT, step.length)}: ${number(step.mean(name), 3)}` : "");
  const list = [];
  if (step.length) list.push(tile("Reward", number(step.last("reward"), 3), recent("reward"), "", explain("step", "reward")));
  if (held.length) list.push(heldOut(held));
  if (step.length) {
    list.push(
      tile("Step time", duration(step.mean("seconds/step")), `mean of ${Math.min(RECENT, step.length)}`, "", explain("step", "seconds/step")),
      tile("Trained tok/s", number(step.last("tokens_per_s"), 3), recent("tokens_per_s"), "", explain("step", "tokens_per_s")),
      tile("Generated tok/s", number(step.last("rollout_tokens_per_s"), 3), recent("rollout_tokens_per_s"), "", explain("step", "rollout_tokens_per_s")),
      tile("Staleness", number(step.last("staleness")), `limit ${run.max_staleness ?? 0}, mode ${run.mode}`, "", explain("step", "staleness")),
      tile("KL, engine–trainer", number(step.last("kl_rollout_k3"), 2), `log-probs differ by at most ${number(step.last("logprob_max_diff"), 2)}`, "", explain("step", "kl_rollout_k3")),
    );
  } else if (store.series.stage_step.length) {
    const stage = store.series.stage_step, held = store.series.stage_eval;
    list.push(
      tile(`Loss, ${stage.last("stage")}`, number(stage.last("loss"), 3), `step ${stage.last("step")}, epoch ${number(stage.last("epoch"), 2)}`, "", explain("stage_step", "loss")),
      tile("Throughput", number(stage.last("tokens_per_s")), "tokens/s", "", explain("stage_step", "tokens_per_s")),
    );
    if (held.length) {
      list.push(tile("Held-out loss", number(held.last(`${held.last("stage")}_loss`), 3), `after step ${held.last("step")}`, "", explain("stage_eval", `${held.last("stage")}_loss`)));
    }
  }
  if (run.weights) list.push(weightsTile(run.weights));
  list.push(tile("Checkpoint", run.checkpoint?.replace(/^step-0*/, "") ?? "none", run.export ? "weight version, exported" : run.checkpoint ? "weight version" : "not saved yet", "", "step whose weights the newest complete checkpoint holds"));
  return list;
}

function heldOut(held) {
  const known = evalSets(), set = known.includes(store.run.eval_set) ? store.run.eval_set : known[0];
  const values = ofSet(set, "reward")[1], when = held.last("when");
  const first = values[0], last = values.at(-1), change = last - first;
  const small = values.length < 2 ? (when === "alone" ? "without training" : `${when} training`) : `${change >= 0 ? "+" : ""}${number(change, 2)} from ${number(first, 3)}`;
  const name = known.length > 1 ? `Held-out ${set}` : "Held-out";
  return tile(name, number(last, 3), small, values.length < 2 ? "" : change >= 0 ? "up" : "down", explain("eval", "reward"));
}

function weightsTile(weights) {
  const behind = Object.entries(weights.behind);
  const size = store.series.sync.last("bytes");
  const small = behind.length ? `engine ${behind.map(([engine, version]) => `${engine} has v${version}`).join(", ")}`
    : `on ${weights.engines} engine${weights.engines === 1 ? "" : "s"}${size ? `, ${bytes(size)}` : ""}`;
  return tile("Weights", `v${weights.version}`, small, behind.length ? "down" : "", "weight version that the engines got last, and the engines that missed it");
}

// What the run waits for in each phase.
const PHASES = {
  train: "the trainer's ranks: fetching samples, forward and backward passes, the optimizer",
  weight_sync: "a weight round", turn: "the GPUs to pass from the trainer to the engines or back",
  checkpoint: "a checkpoint that training could not go on beside",
  rollout: "groups that were being generated while the trainer had nothing to do",
  evaluation: "held-out prompts that were being answered while nothing else went on",
  wait: "nothing that was going on: no engine served, or nothing was asked for",
  other: "time that no recorded phase covers",
};

// Seconds per phase: of the last step, and the mean and share of the recent steps.
function timeTable() {
  const mean = (column) => {
    const values = column.slice(-RECENT).filter((v) => v !== null);
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : 0;
  };
  const rows = phases().map((name) => ({ name, column: secondsOf(name) })).map((row) => ({ ...row, mean: mean(row.column) }));
  const whole = rows.reduce((sum, row) => sum + row.mean, 0) || 1;
  const strip = h("div", { class: "strip" }, rows.map((row) => {
    const piece = h("i", { colour: colour(phaseColour(row.name)), title: `${phaseName(row.name)} ${duration(row.mean)}` });
    piece.style.flexGrow = row.mean;
    return piece;
  }));
  const lines = rows.sort((a, b) => b.mean - a.mean).flatMap((row) => [
    line(phaseName(row.name), row.column.at(-1), row.mean, row.mean / whole, phaseColour(row.name), PHASES[row.name]),
    ...partsOf(row.name).map((part) => {
      const column = store.series.step.column(`seconds/${row.name}/${part}`);
      return line(phaseName(part), column.at(-1), mean(column), mean(column) / whole, null, explain("step", `seconds/${row.name}/${part}`));
    }).sort((a, b) => b.share - a.share),
  ]);
  const recent = Math.min(RECENT, store.series.step.length);
  return [
    h("h2", {}, "Where the time goes"),
    h("p", { class: "bottleneck muted" }, store.run.bottleneck ? ["Bottleneck: ", h("b", {}, store.run.bottleneck.words), "."] : ""),
    strip,
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "phase"), ...["last step", `mean of ${recent}`, "share"].map((t) => h("th", { class: "number" }, t)))),
      h("tbody", {}, lines))),
  ];
}

// Weight rounds: the phases of the trainer and of the slowest engine, and the bytes on the links.
function weightRounds() {
  const sync = store.series.sync;
  const recent = (name) => sync.column(name).slice(-RECENT).filter((v) => v !== null);
  const rows = (prefix) => Object.keys(sync.columns).filter((name) => name.startsWith(prefix) && !name.endsWith("_bytes"))
    .map((name) => ({ name, values: recent(name) })).filter(({ values }) => values.some((v) => v > 0))
    .map(({ name, values }) => h("tr", { title: explain("sync", name) }, h("td", {}, phaseName(name.slice(prefix.length))),
      h("td", { class: "number" }, duration(values.at(-1))),
      h("td", { class: "number" }, duration(values.reduce((a, b) => a + b, 0) / values.length))));
  const heading = (text) => h("tr", {}, h("th", { colspan: 3 }, text));
  const engines = rows("taken/");
  const links = sync.last("links/count")
    ? `${sync.last("links/count")} links: ${bytes(sync.last("links/most"))} over the fullest, at ${bytes(sync.last("links/rate"))}/s, `
      + `and ${bytes(sync.last("links/least"))} over the emptiest`
    : "";
  return [
    h("h2", {}, "Weight rounds"),
    h("p", { class: "muted" }, [bytes(sync.last("bytes")), links].filter(Boolean).join("; ")),
    h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", {}, "phase"), ...["last round", `mean of ${Math.min(RECENT, sync.length)}`].map((t) => h("th", { class: "number" }, t)))),
      h("tbody", {}, heading("trainer"), rows("seconds/"), ...(engines.length ? [heading("slowest engine"), engines] : [])))),
  ];
}

function line(name, last, mean, share, swatch, meaning) {
  const row = h("tr", { class: swatch ? "" : "part", title: meaning },
    h("td", {}, swatch && h("i", { class: "swatch", colour: colour(swatch) }), name),
    h("td", { class: "number" }, duration(last)), h("td", { class: "number" }, duration(mean)),
    h("td", { class: "number" }, `${(100 * share).toFixed(0)} %`));
  row.share = share;
  return row;
}
