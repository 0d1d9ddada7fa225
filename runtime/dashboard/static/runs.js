// The runs of the folder: a line for each, and one figure of several runs in one chart.
import { askJson, h, moment, number, shownRun } from "./dom.js";
import { Chart } from "./charts.js";
import { explain } from "./explain.js";
import { smoothed } from "./figures.js";

const EVERY_MS = 6000, MOST = 8, COLOURS = ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "text"];
const STATES = { running: "good", finished: "info", "comes back": "warn", stopped: "warn", silent: "bad", failed: "bad", cancelled: "bad" };
const HEADS = [["", "to compare"], ["run", "name of its folder"], ["state", ""], ["step", "last step, of those that are planned"], ["reward", ""], ["held-out", ""],
  ["model", ""], ["mode", ""], ["last word", "when it last wrote a figure or an event"]];

export function runs() {
  const state = { list: [], root: "", picked: new Set(), curves: new Map(), figures: ["reward"], over: "step", timer: null };
  const filter = h("input", { type: "search", placeholder: "find a run …", "aria-label": "find a run", oninput: () => fill() });
  const where = h("span", { class: "muted grow ellipsis" }), body = h("tbody");
  const figure = h("select", { "aria-label": "figure", onchange: () => draw() }, h("option", { value: "step reward" }, "reward"));
  const over = h("select", { "aria-label": "over", onchange: () => { state.over = over.value; chart.drop(); draw(); } },
    h("option", { value: "step" }, "steps"), h("option", { value: "hours" }, "hours since its first step"));
  const differences = h("div", { class: "scroll" });
  const chart = new Chart({ title: "Comparison", height: 340, own: true, read: () => content() });
  const compared = h("div", { class: "stack", hidden: true }, h("div", { class: "row" }, h("label", {}, "figure", figure), h("label", {}, "over", over),
    h("span", { class: "muted" }, "smoothed as on the overview; the numbers are the figures themselves")), chart.card, h("section", { class: "card" }, h("h2", {}, "Their recipes differ in"), differences));
  const view = h("div", { class: "stack" }, h("section", { class: "card" }, h("div", { class: "row" }, h("h2", {}, "Runs"), filter, where),
    h("div", { class: "scroll" }, h("table", { class: "runs" }, h("thead", {}, h("tr", {}, HEADS.map(([t, title]) => h("th", { title: title || (t === "reward" ? explain("step", "reward") : undefined) }, t)))), body))), compared);

  const fill = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = state.list.filter((run) => words.every((word) => `${run.name} ${run.state} ${run.model} ${run.mode}`.toLowerCase().includes(word)));
    body.replaceChildren(...found.map(line));
    where.textContent = `${found.length} in ${state.root}`;
  };

  const line = (run) => h("tr", { "data-run": run.name },
    h("td", {}, h("input", { type: "checkbox", "aria-label": `compare ${run.name}`, checked: state.picked.has(run.name), disabled: !state.picked.has(run.name) && state.picked.size >= MOST, onchange: () => pick(run.name) })),
    h("td", {}, h("a", { href: `./?run=${encodeURIComponent(run.name)}#overview` }, run.name), run.name === shownRun.name ? h("span", { class: "muted" }, " (shown)") : ""),
    h("td", {}, h("span", { class: `pill ${STATES[run.state] ?? ""}`, title: run.why }, run.state)),
    h("td", {}, run.step === undefined ? "–" : `${run.step} / ${run.steps_planned}`), h("td", {}, number(run.reward, 3)),
    h("td", {}, run.held_out === undefined ? "–" : `${number(run.held_out, 3)} at ${run.held_out_step}`),
    h("td", {}, run.model ?? ""), h("td", {}, run.mode ?? ""), h("td", { class: "muted" }, moment(run.changed)));

  const pick = (name) => {
    if (!state.picked.delete(name)) state.picked.add(name);
    fill();
    draw();
  };

  const load = async () => {
    const answer = await askJson("runs").catch(() => null);  // the poll tells that the server is gone
    if (!answer) return;
    Object.assign(state, { list: answer.runs, root: answer.root });
    fill();
    if (state.picked.size) await draw();
  };

  const draw = async () => {
    compared.hidden = !state.picked.size;
    if (compared.hidden) return;
    const [kind, name] = figure.value.split(/ (.*)/), names = [...state.picked];
    const curves = await Promise.all(names.map((run) => curve(run, kind, name)));
    state.curves = new Map(names.map((run, i) => [run, curves[i]]));
    await choices(names);
    chart.refresh();
    const found = names.length > 1 ? (await askAll("differences", names)).differences : [];
    differences.replaceChildren(found.length ? h("table", {}, h("thead", {}, h("tr", {}, ["", ...names].map((t) => h("th", {}, t)))),
      h("tbody", {}, found.map(([key, ...values]) => h("tr", {}, h("td", { class: "mono" }, key), values.map((v) => h("td", {}, v)))))) : h("p", { class: "muted" }, names.length > 1 ? "nothing" : "choose another run"));
  };

  // All figures that one of the chosen runs has.
  const choices = async (names) => {
    const held = await Promise.all(names.map((run) => curve(run, "eval", "")));
    const all = [...[...state.curves.values()].flatMap((c) => c.figures.map((f) => `step ${f}`)), ...held.flatMap((c) => c.figures.map((f) => `eval ${f}`))];
    const wanted = [...new Set([figure.value, ...all])].filter((f) => !/^(step|eval) (step|time|version)$/.test(f));
    const chosen = figure.value;
    figure.replaceChildren(...wanted.sort().map((f) => h("option", { value: f, title: f.startsWith("eval ") ? explain("eval", f.replace(/^eval [^/]*\//, "")) : explain(...f.split(/ (.*)/)) }, f.startsWith("eval ") ? `held-out ${f.slice(5)}` : f.slice(5))));
    figure.value = chosen;
  };

  const content = () => {
    const names = [...state.curves.keys()].filter((run) => state.curves.get(run).step.length);
    if (!names.length) return null;
    const held = figure.value.startsWith("eval ");
    const tables = names.map((run) => {
      const c = state.curves.get(run), x = state.over === "step" ? c.step : c.time.map((t) => (t - c.time[0]) / 3600);
      return [x, held ? c.value : smoothed(c.value), c.value];
    });
    const joined = uPlot.join(tables);
    return { x: joined[0], lines: names.map((run, i) => ({ label: run, colour: COLOURS[i], y: joined[1 + 2 * i], shown: joined[2 + 2 * i], points: held, spans: true })) };
  };

  return {
    view, filter,
    mount() { chart.mount(); load(); state.timer = setInterval(() => document.hidden || load(), EVERY_MS); },
    unmount() { chart.unmount(); clearInterval(state.timer); },
    update() {},
  };
}

// One figure of a run, read to its end.
async function curve(run, kind, name) {
  for (;;) {
    const answer = await askJson("curve", { run, kind, figure: name });
    if (!answer.more) return answer;
  }
}

async function askAll(path, names) {
  return (await fetch(`api/${path}?${new URLSearchParams(names.map((name) => ["run", name]))}`, { credentials: "same-origin" })).json();
}
