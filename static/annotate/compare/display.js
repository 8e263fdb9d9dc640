// How the answers are shown: all cut to the same height or whole, two of them scrolled together, and their difference.

import { difference } from "./difference.js";
import { announce, element, fill, gettext, recall, remember } from "./dom.js";

const WHOLE = "plumbline-whole-answers";
const APART = "plumbline-scroll-apart";

export class Display {
  constructor(root, cards, tools) {
    this.root = root;
    this.cards = cards;
    this.tools = tools;
    tools.hidden = false;
    this.isWhole = recall(WHOLE) === true;
    this.isApart = recall(APART) === true;
    this.lengthButton = this.addTool("x", () => this.toggleLength());
    this.stepButton = cards.length === 2 ? this.addTool("y", () => this.toggleStep()) : null;
    const view = root.querySelector("[data-diff-view]");
    this.diff = new Diff(
      view,
      cards,
      this.addTool("d", () => this.diff.toggle()),
    );
    this.leader = null; // the pane that the annotator scrolls; the other only follows
    for (const { text } of cards) {
      for (const type of ["pointerenter", "wheel", "touchstart", "focusin"]) {
        text.addEventListener(type, () => (this.leader = text), { passive: true });
      }
      text.addEventListener("scroll", () => this.follow(text), { passive: true });
    }
    this.observer = new ResizeObserver(() => this.measure());
    cards.forEach(({ text }) => this.observer.observe(text));
    this.refresh();
  }

  addTool(key, act) {
    const button = element("button", { type: "button", className: "button quiet tool", hidden: true });
    button.addEventListener("click", act);
    button.words = element("span");
    button.append(button.words, " ", element("kbd", { dataset: { keysOnly: "" } }, key.toUpperCase()));
    this.tools.append(button);
    return button;
  }

  toggleLength() {
    this.isWhole = !this.isWhole;
    remember(WHOLE, this.isWhole || null);
    this.refresh();
    announce(this.isWhole ? gettext("Answers are shown whole.") : gettext("Answers are cut to the same height."));
  }

  toggleStep() {
    this.isApart = !this.isApart;
    remember(APART, this.isApart || null);
    this.refresh();
    announce(this.isApart ? gettext("Answers scroll each by itself.") : gettext("Answers scroll together."));
  }

  refresh() {
    this.root.classList.toggle("is-whole", this.isWhole);
    this.lengthButton.words.textContent = this.isWhole ? gettext("Cut long answers") : gettext("Show answers whole");
    if (this.stepButton) {
      this.stepButton.words.textContent = gettext("Scroll together");
      this.stepButton.ariaPressed = String(!this.isApart);
    }
    this.measure();
  }

  // A pane that scrolls must be reachable by Tab, and only then.
  measure() {
    let isLong = false;
    for (const { text, letter } of this.cards) {
      const isCut = text.scrollHeight > text.clientHeight + 2;
      isLong ||= isCut;
      text.classList.toggle("is-cut", isCut);
      if (isCut) {
        text.tabIndex = 0;
        text.role = "group";
        text.ariaLabel = fill(gettext("Text of %(letter)s"), { letter });
      } else {
        text.removeAttribute("tabindex");
        text.removeAttribute("role");
        text.removeAttribute("aria-label");
      }
    }
    this.lengthButton.hidden = !(isLong || this.isWhole);
    if (this.stepButton) this.stepButton.hidden = !isLong;
  }

  follow(text) {
    if (this.cards.length !== 2 || this.isApart || this.isWhole || (this.leader && this.leader !== text)) return;
    const share = text.scrollTop / Math.max(1, text.scrollHeight - text.clientHeight);
    for (const card of this.cards) {
      if (card.text !== text) card.text.scrollTop = share * (card.text.scrollHeight - card.text.clientHeight);
    }
  }

  close() {
    this.observer.disconnect();
  }
}

class Diff {
  constructor(view, cards, button) {
    this.view = view;
    this.cards = cards;
    this.button = button;
    button.hidden = false;
    button.words.textContent = gettext("Difference");
    button.ariaExpanded = "false";
  }

  toggle() {
    if (!this.panel) this.build();
    this.view.hidden = !this.view.hidden;
    this.button.ariaExpanded = String(!this.view.hidden);
    if (!this.view.hidden) this.view.scrollIntoView({ block: "nearest" });
  }

  build() {
    this.panel = element("div", { className: "diff", dir: "auto" });
    this.selects = [0, 1].map((chosen) => this.makeSelect(chosen));
    const [from, to] = this.selects;
    const choice = element("p", { className: "diff-choice" }, from, element("span", {}, "→"), to);
    this.view.ariaLabel = gettext("Difference");
    this.view.role = "group";
    this.view.replaceChildren(choice, this.panel);
    this.refresh();
  }

  makeSelect(chosen) {
    const ariaLabel = chosen === 0 ? gettext("From") : gettext("To");
    const options = this.cards.map(({ letter }, index) => new Option(letter, index, false, index === chosen));
    const select = element("select", { ariaLabel }, ...options);
    select.addEventListener("change", () => this.refresh());
    return select;
  }

  refresh() {
    const [before, after] = this.selects.map((select) => this.cards[select.value].source);
    const tags = { same: "span", removed: "del", added: "ins" };
    const pieces = difference(before, after).map(({ kind, text }) => element(tags[kind], {}, text));
    this.panel.replaceChildren(...pieces);
  }
}
