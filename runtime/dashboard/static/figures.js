// Defines the charts. Each reads its data from the store, and is hidden while its figures are missing.
import { evalSets, ofSet, phases, secondsOf, store, timed } from "./store.js";
import { smooth } from "./charts.js";
import { explain } from "./explain.js";

export const PHASE_COLOURS = { rollout: "c1", train: "c2", weight_sync: "c3", checkpoint: "c6", wait: "c5", evaluation: "c4", other: "c7" };
export const SET_COLOURS = ["c2", "c3", "c5", "c6", "c7", "c4"];
export const phaseColour = (phase) => PHASE_COLOURS[phase] ?? "c4";
export const phaseName = (phase) => phase.replaceAll("_", " ");

const settings = { weight: 0.8 };
export const smoothed = (values) => (settings.weight ? smooth(values, settings.weight) : values);
export const setSmoothing = (weight) => { settings.weight = weight; };

const steps = () => store.series.step;
const after = () => steps().column("step");

// A chart of lines over steps; a line is [label, column, colour]. `smoothed` draws a bold mean over a faint line.
function figure(title, columns, { smoothed = false, scale = 1, ...options } = {}) {
  const read = () => {
    const there = columns.filter(([, name]) => steps().has(name));
    if (!there.length) return null;
    const lines = there.flatMap(([label, name, colour]) => {
      const y = scale === 1 ? steps().column(name) : steps().column(name).map((v) => (v === null ? null : v * scale));
      const drawn = options.log ? y.map((v) => (v > 0 ? v : null)) : y;
      if (!smoothed || !settings.weight) return [{ label, colour, y: drawn, shown: y }];
      return [
        { label, colour, y, faint: true, width: 1 },
        { label: "smoothed", colour, y: smooth(y, settings.weight), width: 2, silent: true },
      ];
    });
    return { x: after(), lines };
  };
  return { title, read, columns: columns.map(([, name]) => name), meanings: columns, ...options };
}

// Training reward and held-out scores have the same unit, so they share a chart.
export function rewardFigure() {
  const read = () => {
    const sets = evalSets();
    if (!steps().length && !sets.length) return null;
    const rewards = steps().column("reward");
    const data = uPlot.join([
      [after(), rewards, smooth(rewards, settings.weight)],
      ...sets.map((set) => ofSet(set, "reward")),
    ]);
    const lines = [
      { label: "reward", colour: "c1", y: data[1], faint: settings.weight > 0, width: 1 },
      { label: "smoothed", colour: "c1", y: data[2], width: 2 },
      ...sets.map((set, i) => ({ label: sets.length > 1 ? `held-out ${set}` : "held-out", colour: SET_COLOURS[i % SET_COLOURS.length], y: data[3 + i], points: true, width: 1.4, dash: [5, 4] })),
    ];
    return { x: data[0], lines };
  };
  return { title: "Reward", note: "mean of each step, and held-out scores", read, columns: ["reward"], meanings: [["reward", "reward"]], height: 285 };
}

export function phaseFigure() {
  const read = () => {
    if (!steps().has("seconds/step")) return null;
    const names = phases(), raw = names.map(secondsOf);
    const tops = [];
    raw.reduce((below, column) => {
      const top = below.map((b, i) => b + (column[i] ?? 0));
      tops.push(top);
      return top;
    }, new Array(steps().length).fill(0));
    const lines = names.map((name, i) => ({
      label: phaseName(name), colour: phaseColour(name), y: tops[i], shown: raw[i], filled: true, width: 0,
    })).reverse();  // the tallest first, so that the others are drawn in front of it
    const whole = steps().column("seconds/step");
    if (timed() === "seconds/" && overlapping(tops.at(-1), whole)) lines.push({ label: "step", colour: "text", y: whole, width: 1.4 });
    return { x: after(), lines };
  };
  return { title: "Phases", note: "seconds of each step", read, meanings: [["seconds", "critical_path/train"]], zero: true, bars: true, height: 285 };
}

const overlapping = (covered, whole) => covered.some((sum, i) => whole[i] !== null && sum > 1.05 * whole[i] + 0.001);

function stages() {
  const rows = store.series.stage_step, held = store.series.stage_eval;
  const read = () => {
    if (rows.length < 2) return null;
    const x = rows.column("step"), loss = rows.column("loss");
    const lines = [{ label: "loss", colour: "c4", y: loss }];
    const kinds = held.column("stage"), losses = kinds.map((kind, i) => held.column(`${kind}_loss`)[i]);
    const measured = new Map(held.column("step").map((step, i) => [step, losses[i]]));
    if (measured.size) lines.push({ label: "held-out loss", colour: "c1", y: x.map((step) => measured.get(step) ?? null), gaps: false });
    return { x, lines };
  };
  return { title: "Stages without engines", note: "loss on the rows of data files", read, kind: "stage_step", meanings: [["loss", "loss"]], columns: [] };
}

const FIGURES = [
  figure("Loss", [["loss", "loss", "c1"]], { smoothed: true }),
  figure("Gradient norm", [["grad norm", "grad_norm", "c2"]], { smoothed: true, zero: true }),
  figure("Throughput", [["trained tokens/s", "tokens_per_s", "c2"], ["generated tokens/s", "rollout_tokens_per_s", "c1"]],
    { zero: true }),
  figure("Staleness", [["most weight versions behind", "staleness", "c4"]], { zero: true }),
  figure("Dropped groups", [["all", "dropped/all", "c5"], ["by the filter", "dropped/filter", "c3"],
    ["too old", "dropped/stale", "c4"]], { zero: true, note: "per step" }),
  figure("KL, engine vs trainer", [["k3 estimate", "kl_rollout_k3", "c5"]], { log: true, note: "log scale" }),
  figure("Log-probability, engine vs trainer", [["largest difference", "logprob_max_diff", "c5"]],
    { log: true, note: "per token, log scale" }),
  figure("Entropy", [["entropy", "entropy", "c6"]], { smoothed: true }),
  figure("Policy ratio", [["mean ratio", "ratio", "c1"], ["clipped", "clip_fraction", "c5"]]),
  figure("Response length", [["tokens", "response_length", "c3"]], { smoothed: true, zero: true }),
  figure("Truncated responses", [["truncated", "truncated", "c5"]], { scale: 100, zero: true, note: "% of responses" }),
  figure("Rewards of a step", [["largest", "rewards/max", "c7"], ["90 %", "rewards/p90", "c3"], ["median", "rewards/median", "c1"],
    ["10 %", "rewards/p10", "c2"], ["smallest", "rewards/min", "c7"]], { note: "quantiles of its answers" }),
  figure("Spread within a group", [["standard deviation", "reward_spread", "c4"]], { smoothed: true, zero: true, note: "mean over the groups" }),
  figure("Groups that teach nothing", [["all right", "groups_all_right", "c3"], ["all wrong", "groups_all_wrong", "c5"],
    ["equal rewards", "solved_groups", "c7"]], { scale: 100, zero: true, note: "% of groups" }),
  figure("Routing replay", [["would differ", "routing_would_differ", "c4"], ["tokens, in any layer", "routing_tokens_differ", "c6"]],
    { scale: 100, zero: true, note: "% of choices the trainer would make differently, % of tokens with such a choice" }),
  figure("Routing, counted", [["replayed", "routing_replayed", "c3"], ["recomputed", "routing_recomputed", "c2"],
    ["unknown, routed freely", "routing_free", "c4"], ["wrong", "routing_wrong", "c5"]], { zero: true, note: "tokens × layers" }),
  figure("Sparse attention's replay", [["would differ", "selection_would_differ", "c4"],
    ["tokens, in any layer", "selection_tokens_differ", "c6"]],
    { scale: 100, zero: true, note: "% of positions the indexer would not have chosen, % of tokens with such a position" }),
  figure("Sparse attention, counted", [["replayed", "selection_replayed", "c3"], ["recomputed", "selection_recomputed", "c2"],
    ["wrong", "selection_wrong", "c5"]], { zero: true, note: "tokens × layers" }),
  figure("Effect of replay: KL", [["with replay", "routing_probe_kl_replayed", "c3"], ["without", "routing_probe_kl_free", "c5"]],
    { log: true, note: "k3 on a micro-batch, log scale" }),
  figure("Effect of replay: largest ratio", [["with replay", "routing_probe_ratio_replayed", "c3"],
    ["without", "routing_probe_ratio_free", "c5"]], { log: true, note: "of a token's two probabilities, log scale" }),
  figure("KL from the reference", [["k3 estimate", "kl_reference_k3", "c6"]], { log: true, note: "log scale" }),
  figure("Learning rate", [["lr", "lr", "c7"]], { zero: true }),
  stages(),
];

const KNOWN = new Set([...FIGURES.flatMap((f) => f.columns), "step", "version", "time", "tokens", "trained_tokens", "reward"]);

export const figures = () => FIGURES;

// Figures that are not defined above, each with whether it is the user's own: one that the glossary does not know.
export function otherFigures(already) {
  return unknown(steps(), "step").filter(({ id }) => !already.has(id));
}

function unknown(series, kind) {
  return Object.keys(series.columns)
    .filter((name) => !KNOWN.has(name) && !/^(seconds|critical_path)\//.test(name))
    .filter((name) => series.columns[name].some((v) => typeof v === "number"))
    .map((name) => ({ id: `${kind} ${name}`, own: !explain(kind, name), spec: ofSteps(name) }));
}

const spoken = (name) => name.replaceAll("_", " ");
const ofSteps = (name) => figure(spoken(name), [[spoken(name), name, "c6"]], { smoothed: true });
