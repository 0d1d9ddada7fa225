// The stack of a process, asked of its node's agent.
import { ask, askJson, h } from "./dom.js";

const EVERY_MS = 700, PATIENCE_MS = 45_000;

export function stackOf(name) {
  const text = h("pre", { class: "trace", hidden: true });
  const button = h("button", { title: "where its threads are now; a moment's pause for the process", onclick: () => take() }, "Take its stack");
  const tell = (words) => { text.hidden = false; text.textContent = words; };

  const take = async () => {
    button.disabled = true;
    tell("asking the node's agent …");
    try {
      await ask("stack", { name }, true);
      const until = Date.now() + PATIENCE_MS;
      let answer = {};
      while (!answer.text && Date.now() < until) {
        await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
        answer = await askJson("stack", { name });
      }
      tell(answer.text ?? "The node's agent has not answered within 45 s: it is gone, or the file system is slow.");
    } catch (error) {
      tell(error.message);
    }
    button.disabled = false;
  };
  return h("div", {}, button, text);
}
