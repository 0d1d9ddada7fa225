// The kept samples of a step and the held-out answers of an evaluation: what the model wrote, what was asked and wanted,
// and the probabilities of each token.
import { ask, askJson, h, number } from "./dom.js";

const WAYS = {
  difference: "log-probability, trainer − engine",
  probability: "how unlikely it was for the engine",
  none: "none",
};

export function samples() {
  const state = { kind: "step", steps: [], step: null, list: [], line: null, sample: null };
  const kind = h("select", { "aria-label": "kind of samples", onchange: () => { state.kind = kind.value; go(null); } },
    h("option", { value: "step" }, "training"), h("option", { value: "eval" }, "held-out"));
  const choose = h("select", { "aria-label": "step", onchange: () => go(Number(choose.value)) });
  const previous = h("button", { onclick: () => beside(-1), title: "earlier step (,)" }, "‹");
  const next = h("button", { onclick: () => beside(1), title: "later step (.)" }, "›");
  const way = h("select", { "aria-label": "colour of tokens", onchange: () => showSample() },
    Object.entries(WAYS).map(([value, label]) => h("option", { value }, label)));
  const names = h("div", { class: "card list", "aria-label": "samples" });
  const pane = h("section", { class: "card stack" });
  const nothing = h("p", { class: "card empty", hidden: true }, "No samples were kept.");
  const split = h("div", { class: "split", hidden: true }, h("div", { class: "stack" }, h("div", { class: "row" }, h("label", {}, "step", choose), previous, next), names), pane);
  const view = h("div", { class: "stack" }, h("div", { class: "row" }, h("label", {}, "samples of", kind)), nothing, split);

  const load = async (step) => {
    const answer = await askJson("samples", { kind: state.kind, ...(step === null ? {} : { step }) });
    Object.assign(state, { steps: answer.steps, step: answer.step, list: answer.samples, line: answer.samples[0]?.line ?? null });
    nothing.hidden = answer.steps.length > 0;
    split.hidden = !answer.steps.length;
    const when = answer.samples[0]?.when;
    choose.replaceChildren(...answer.steps.map((s) => h("option", { value: String(s) }, s === answer.step && when && when !== "alone" ? `${s} (${when} training)` : String(s))));
    choose.value = String(answer.step);
    const at = state.steps.indexOf(state.step);
    previous.disabled = at <= 0;
    next.disabled = at >= state.steps.length - 1;
    showList();
    await open(state.line);
  };
  const go = (step) => load(step).catch(failed);
  const failed = (error) => { pane.replaceChildren(h("p", { class: "empty" }, error.message)); };
  const beside = (by) => {
    const step = state.steps[state.steps.indexOf(state.step) + by];
    if (step !== undefined) go(step);
  };
  const down = (by) => {
    const at = state.list.findIndex((s) => s.line === state.line) + by;
    if (state.list[at]) open(state.list[at].line);
  };

  const showList = () => {
    let group = null;
    names.replaceChildren(...state.list.flatMap((s) => {
      const head = `${s.set} ${s.group}` === group ? [] : [h("div", { class: "head ellipsis" }, question(s.prompt))];
      group = `${s.set} ${s.group}`;
      const link = h("a", { href: "#samples", "data-line": String(s.line), onclick: (event) => { event.preventDefault(); open(s.line); } },
        h("div", { class: "two" }, h("span", { class: "ellipsis" }, s.response.trim() || "(empty)"), h("b", {}, number(s.reward, 3))));
      return [...head, link];
    }));
  };

  const open = async (line) => {
    state.line = line;
    if (line === null) return pane.replaceChildren(h("p", { class: "empty" }, "This step has no samples."));
    for (const link of names.querySelectorAll("a")) {
      const chosen = link.dataset.line === String(line);
      if (chosen) { link.setAttribute("aria-current", "true"); link.scrollIntoView({ block: "nearest" }); } else link.removeAttribute("aria-current");
    }
    try {
      state.sample = await (await ask("sample", { kind: state.kind, step: state.step, line })).json();
      showSample();
    } catch (error) {
      failed(error);
    }
  };

  const showSample = () => {
    const s = state.sample;
    if (!s) return;
    const differences = gaps(s);
    const largest = Math.max(0, ...differences.map((d) => Math.abs(d ?? 0)));
    pane.replaceChildren(
      h("div", { class: "row" }, h("span", { class: "pill info" }, `reward ${number(s.reward, 3)}`),
        ...(s.advantage === null ? [] : [h("span", { class: `pill ${s.advantage > 0 ? "good" : s.advantage < 0 ? "bad" : ""}` }, `advantage ${number(s.advantage, 3)}`)]),
        ...(s.tokens.length ? [h("span", { class: "muted grow" }, `${s.tokens.length} tokens, largest difference ${number(largest, 3)}`), h("label", {}, "colour", way)] : [])),
      h("div", {}, h("h2", {}, "Prompt"), h("div", { class: "text" }, s.prompt)),
      ...given("Label", s.label), ...given("Metadata", s.metadata),
      h("div", {}, h("h2", {}, "Response"), s.tokens.length ? tokens(s, differences, largest, way.value) : h("div", { class: "text" }, s.response)),
      s.tokens.length ? key(way.value, largest, s.routing_differs !== null) : "");
  };

  return {
    view,
    keys: { ",": () => beside(-1), ".": () => beside(1), j: () => down(1), k: () => down(-1) },
    update(changed) { if (changed.has("all")) go(null); },
  };
}

// What the data file says beside the prompt: text as it stands, anything else as JSON; nothing if there is none.
function given(title, value) {
  if (value === null || value === undefined || (typeof value === "object" && !Object.keys(value).length)) return [];
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  return [h("div", { "data-given": title }, h("h2", {}, title), h("div", { class: "text mono" }, text))];
}

// The last line of a prompt that is not part of the chat template.
function question(prompt) {
  const lines = prompt.replace(/<\|[^|>]*\|>|<\/?\w+>/g, "\n").split("\n").map((line) => line.trim());
  return lines.filter((line) => line && !/^(system|user|assistant)$/.test(line)).at(-1) ?? prompt;
}

const gaps = (s) => s.tokens.map((_, i) => {
  const engine = s.rollout_logprobs[i], trainer = s.trainer_logprobs[i];
  if (typeof engine !== "number" || typeof trainer !== "number") return null;
  return trainer === 0 && engine < -0.01 ? null : trainer - engine;  // 0 marks a token that is not trained on
});

function tokens(s, differences, largest, way) {
  const scale = Math.max(largest, 1e-6);
  return h("div", { class: "tokens mono" }, s.tokens.map((token, i) => {
    const differs = s.routing_differs?.[i] === 1;
    const words = [JSON.stringify(token), `engine ${number(s.rollout_logprobs[i])}`, `trainer ${number(s.trainer_logprobs[i])}`,
      `difference ${number(differences[i])}`, ...(differs ? ["the trainer would route it differently"] : [])];
    const span = h("span", { class: differs ? "differs" : "", title: words.join("\n"), "data-difference": differences[i] === null ? "" : String(differences[i]) }, token);
    if (way === "difference" && differences[i]) {
      const strength = Math.round(70 * Math.abs(differences[i]) / scale);
      span.style.background = `color-mix(in srgb, var(--${differences[i] > 0 ? "c3" : "c5"}) ${strength}%, transparent)`;
    } else if (way === "probability" && typeof s.rollout_logprobs[i] === "number") {
      const strength = Math.round(80 * (1 - Math.exp(s.rollout_logprobs[i])));
      span.style.background = `color-mix(in srgb, var(--c2) ${strength}%, transparent)`;
    }
    return span;
  }));
}

function key(way, largest, routed) {
  const routing = routed ? h("span", {}, "underlined: the trainer would route it differently") : "";
  if (way === "none") return h("div", { class: "row muted" }, routing);
  if (way === "probability") return h("div", { class: "row muted" }, "likely", h("span", { class: "scale" }), "unlikely", routing);
  return h("div", { class: "row muted" }, `−${number(largest, 2)}`, h("span", { class: "scale signed" }), `+${number(largest, 2)}`, routing);
}
