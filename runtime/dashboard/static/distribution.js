// How the rewards of a step are spread: how many of its answers got which reward, in the last step and in the first.
import { h, number } from "./dom.js";
import { explain } from "./explain.js";

export function distribution(rewards) {
  const parts = rewards.first.step === rewards.last.step ? [rewards.last] : [rewards.last, rewards.first];
  return [h("h2", { title: explain("step", "reward_histogram/*") }, "Reward distribution"), ...parts.map(bars)];
}

function bars(found) {
  const whole = found.count.reduce((a, b) => a + b, 0);
  const rows = found.count.map((count, i) => {
    const bar = h("i", {}), share = count / whole;
    bar.style.width = `${100 * share}%`;
    const range = found.from[i] === found.to[i] ? number(found.to[i], 3) : `${number(found.from[i], 3)} … ${number(found.to[i], 3)}`;
    return h("tr", { title: `${count} of ${whole} answers` }, h("td", { class: "number" }, range),
      h("td", { class: "track" }, bar), h("td", { class: "number" }, `${(100 * share).toFixed(0)} %`));
  });
  return h("div", {}, h("p", { class: "muted" }, `step ${found.step}: ${whole} answers`), h("table", { class: "bars", "data-step": String(found.step) }, h("tbody", {}, rows)));
}
