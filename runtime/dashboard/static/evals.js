// The evaluations: a curve with its interval for each figure of each set, and the answers to one prompt at different
// steps side by side.
import { askJson, h, number } from "./dom.js";
import { Chart } from "./charts.js";
import { SET_COLOURS } from "./figures.js";
import { evalSets, ofSet, store } from "./store.js";

const MOST_STEPS = 4;  // that are side by side when the page opens

export function evals() {
  const charts = new Map();  // "set figure" -> Chart
  const curves = h("section", { class: "charts", "aria-label": "curves" });
  const nothing = h("p", { class: "card empty" }, "There was no evaluation yet.");
  const beside = answers();
  const view = h("div", { class: "stack" }, nothing, curves, beside.view);

  const show = () => {
    const sets = evalSets();
    nothing.hidden = sets.length > 0;
    beside.view.hidden = !sets.length;
    sets.forEach((set, place) => figuresOf(set).forEach((figure) => {
      const id = `${set} ${figure}`;
      if (!charts.has(id)) {
        const chart = new Chart({ title: `${set}: ${spoken(figure)}`, kind: "eval", meanings: [[spoken(figure), figure]], read: () => curve(set, figure, SET_COLOURS[place % SET_COLOURS.length]) });
        charts.set(id, chart);
        chart.card.dataset.figure = id;
        curves.append(chart.card);
        chart.mount();
      }
      charts.get(id).refresh();
    }));
  };
  return {
    view,
    unmount() { for (const chart of charts.values()) chart.unmount(); },
    update(changed) {
      if (!["eval", "all"].some((part) => changed.has(part))) return;
      show();
      beside.load();
    },
  };
}

const spoken = (figure) => figure.replaceAll("_", " ");

// The figures of a set that are numbers, those with an interval first.
function figuresOf(set) {
  const names = Object.keys(store.series.eval.columns).filter((name) => name.startsWith(`${set}/`)).map((name) => name.slice(set.length + 1));
  const plain = names.filter((name) => !name.endsWith("_ci") && !["samples", "prompts", "left_out"].includes(name));
  const sure = (name) => (name === "reward" || names.includes(`${name}_ci`) ? 0 : 1);
  return plain.sort((a, b) => sure(a) - sure(b));
}

function curve(set, figure, colour) {
  const [x, y] = ofSet(set, figure), halves = new Map();
  const [steps, half] = ofSet(set, `${figure}_ci`);
  steps.forEach((step, i) => halves.set(step, half[i]));
  const edge = (sign) => x.map((step, i) => (halves.has(step) ? y[i] + sign * halves.get(step) : null));
  const lines = [{ label: spoken(figure), colour, y, points: true, width: 1.6 }];
  if (halves.size) lines.push({ label: "95 % interval, from", colour, y: edge(-1), faint: true, width: 1, dash: [2, 3] }, { label: "to", colour, y: edge(1), faint: true, width: 1, dash: [2, 3] });
  return x.length ? { x, lines } : null;
}

// Answers to the same prompt at several steps, in columns.
function answers() {
  const state = { sets: [], set: null, row: null, prompts: [], steps: [], chosen: null };
  const set = h("select", { "aria-label": "evaluation set", onchange: () => { state.set = set.value; state.row = null; load(); } });
  const prompt = h("select", { "aria-label": "prompt", onchange: () => { state.row = Number(prompt.value); load(); } });
  const boxes = h("div", { class: "row", "aria-label": "steps" });
  const asked = h("div", { class: "text", "data-part": "prompt" });
  const columns = h("div", { class: "besides" });
  const none = h("p", { class: "empty" }, "No answers were kept.");
  const body = h("div", { class: "stack" }, h("div", { class: "row" }, h("label", {}, "set", set), h("label", {}, "prompt", prompt), boxes), asked, columns);
  const view = h("section", { class: "card stack", "data-part": "answers" }, h("h2", {}, "Answers to one prompt, step by step"), none, body);

  const load = async () => {
    let found;
    try {
      found = await askJson("evals", { ...(state.set === null ? {} : { set: state.set }), ...(state.row === null ? {} : { row: state.row }) });
    } catch (error) {
      columns.replaceChildren(h("p", { class: "empty" }, error.message));
      return;
    }
    Object.assign(state, found);
    none.hidden = found.steps.length > 0;
    body.hidden = !found.steps.length;
    set.replaceChildren(...found.sets.map((name) => h("option", { value: name }, name)));
    if (found.set !== null) set.value = found.set;
    prompt.replaceChildren(...found.prompts.map(([row, text]) => h("option", { value: String(row) }, `${row + 1}: ${text.trim().split("\n").at(-1).slice(0, 80)}`)));
    prompt.value = String(found.row);
    show();
  };
  const show = () => {
    const known = state.steps.map((s) => s.step);
    const chosen = (state.chosen ?? spread(known)).filter((step) => known.includes(step));
    boxes.replaceChildren(...known.map((step) => h("label", {}, h("input", { type: "checkbox", value: String(step), checked: chosen.includes(step), onchange: choose }), `step ${step}`)));
    asked.textContent = state.steps[0]?.prompt ?? "";
    columns.style.gridTemplateColumns = `repeat(${Math.max(1, chosen.length)}, minmax(220px, 1fr))`;
    columns.replaceChildren(...state.steps.filter((s) => chosen.includes(s.step)).map((s) => h("div", { class: "stack", "data-step": String(s.step) },
      h("h3", {}, `step ${s.step}`), s.answers.map((a) => h("div", { class: "card" }, h("span", { class: "pill info" }, `reward ${number(a.reward, 3)}`), h("div", { class: "text" }, a.response.trim() || "(empty)"))))));
  };
  const choose = () => {
    state.chosen = [...boxes.querySelectorAll("input:checked")].map((box) => Number(box.value));
    show();
  };
  return { view, load };
}

// The first and the last step, and some between them.
function spread(steps) {
  if (steps.length <= MOST_STEPS) return steps;
  return Array.from({ length: MOST_STEPS }, (_, i) => steps[Math.round(i * (steps.length - 1) / (MOST_STEPS - 1))]);
}
