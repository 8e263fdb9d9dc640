// Passages of an answer that the annotator marks, each with a reason. By pointer: select text, press the button that
// appears, or H. By keyboard: H on a card walks from sentence to sentence. The marks are painted by the browser over
// the text, so that the text itself stays as the server made it; offsets count its characters as shown.

import { announce, element, fill, gettext } from "./dom.js";

const CAN_PAINT = "highlights" in CSS;
const LONGEST = 5000; // characters, as the server has it

export class Highlights {
  constructor(root, cards, input) {
    this.root = root;
    this.cards = cards;
    this.input = input;
    this.list = root.querySelector("[data-highlight-list]");
    this.button = this.makeButton();
    this.dialog = this.makeDialog();
    this.items = this.parse();
    this.refresh();
    this.onSelect = () => this.selected();
    document.addEventListener("selectionchange", this.onSelect);
  }

  close() {
    document.removeEventListener("selectionchange", this.onSelect);
    if (CAN_PAINT) CSS.highlights.clear();
  }

  parse() {
    try {
      return JSON.parse(this.input.value || "[]");
    } catch {
      return [];
    }
  }

  makeButton() {
    const button = element(
      "button",
      { type: "button", className: "button mark-button", hidden: true },
      gettext("Mark this passage"),
    );
    button.addEventListener("pointerdown", (event) => event.preventDefault()); // the selection stays
    button.addEventListener("click", () => this.start());
    this.root.append(button);
    return button;
  }

  makeDialog() {
    const reasons = [gettext("Wrong"), gettext("Unclear"), gettext("Harmful"), gettext("Well put")];
    this.quote = element("blockquote", { className: "quote" });
    this.reason = element("input", { type: "text", maxLength: 300, id: "mark-reason" });
    const chips = reasons.map((words, index) => {
      const chip = element(
        "button",
        { type: "button", className: "button", dataset: { digit: index + 1 } },
        words,
        " ",
        element("kbd", {}, String(index + 1)),
      );
      chip.addEventListener("click", () => this.add(words));
      return chip;
    });
    const title = element("h2", { id: "mark-title" }, gettext("Mark this passage"));
    const own = element("label", { htmlFor: "mark-reason" }, gettext("Or in your own words"));
    const cancel = element("button", { type: "button", className: "button quiet" }, gettext("Cancel"));
    const form = element(
      "form",
      { method: "dialog", className: "dialog-form" },
      title,
      this.quote,
      element("div", { className: "reasons" }, ...chips),
      element("p", { className: "field" }, own, this.reason),
      element(
        "p",
        { className: "actions" },
        element("button", { className: "button primary" }, gettext("Mark")),
        cancel,
      ),
    );
    const dialog = element("dialog", { className: "help" }, form);
    dialog.setAttribute("aria-labelledby", "mark-title");
    dialog.dataset.markDialog = "";
    cancel.addEventListener("click", () => dialog.close());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.add(this.reason.value.trim());
    });
    this.root.append(dialog);
    return dialog;
  }

  // What is selected, if it lies within one answer.
  get selection() {
    const selection = getSelection();
    if (!selection.rangeCount || selection.isCollapsed) return null;
    const range = selection.getRangeAt(0);
    const position = this.cards.findIndex(({ text }) => text.contains(range.commonAncestorContainer));
    if (position < 0) return null;
    const { text } = this.cards[position];
    const start = offsetOf(text, range.startContainer, range.startOffset);
    const end = offsetOf(text, range.endContainer, range.endOffset);
    return start < end ? { position, start, end, range } : null;
  }

  selected() {
    const { selection } = this;
    this.button.hidden = !selection || this.dialog.open;
    if (this.button.hidden) return;
    const box = selection.range.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left), innerWidth - this.button.offsetWidth - 8);
    const top = Math.max(
      8,
      box.bottom + 8 + this.button.offsetHeight > innerHeight ? box.top - this.button.offsetHeight - 8 : box.bottom + 8,
    );
    Object.assign(this.button.style, { left: `${left}px`, top: `${top}px` });
  }

  // H: mark what is selected; with nothing selected, walk through the sentences of the card in focus.
  onKey(focusedCard) {
    if (this.selection) this.start();
    else this.walk(Math.max(0, this.cards.indexOf(focusedCard)));
  }

  start(span = this.selection) {
    if (!span) return;
    const { position, start, end } = span;
    if (end - start > LONGEST) return announce(gettext("That is too long to mark: choose a shorter passage."));
    this.pending = { position, start, end, text: this.cards[position].text.textContent.slice(start, end) };
    this.quote.textContent = shorten(this.pending.text, 240);
    this.reason.value = "";
    this.button.hidden = true;
    this.dialog.showModal();
  }

  add(reason) {
    this.items.push({ ...this.pending, reason });
    getSelection().removeAllRanges();
    this.dialog.close();
    this.stopWalking();
    this.store();
    announce(fill(gettext("Marked in %(letter)s."), this.cards[this.pending.position]));
  }

  remove(item) {
    this.items = this.items.filter((other) => other !== item);
    this.store();
    announce(gettext("Mark removed."));
  }

  store() {
    this.input.value = this.items.length ? JSON.stringify(this.items) : "";
    this.input.dispatchEvent(new Event("input", { bubbles: true }));
    this.refresh();
  }

  refresh() {
    this.list?.replaceChildren(...this.items.map((item) => this.makeRow(item)));
    if (this.list) this.list.hidden = !this.items.length;
    this.paint("marked", this.items);
  }

  makeRow(item) {
    const { letter } = this.cards[item.position] ?? { letter: "?" };
    const remove = element("button", { type: "button", className: "button quiet" }, gettext("Remove"));
    remove.ariaLabel = fill(gettext("Remove the mark “%(text)s”"), { text: shorten(item.text, 40) });
    remove.addEventListener("click", () => this.remove(item));
    return element(
      "li",
      {},
      element("span", { className: "letter" }, letter),
      element("q", { dir: "auto" }, shorten(item.text, 120)),
      element("span", { className: "muted" }, item.reason),
      remove,
    );
  }

  paint(name, spans) {
    if (!CAN_PAINT) return;
    const ranges = spans
      .filter(({ position }) => this.cards[position])
      .map(({ position, start, end }) => rangeOf(this.cards[position].text, start, end));
    CSS.highlights.set(name, new Highlight(...ranges));
  }

  // By keyboard alone: J and K choose a sentence, Shift takes further ones in, Enter marks, Escape ends.
  walk(position) {
    const sentences = sentencesOf(this.cards[position].text.textContent);
    if (!sentences.length) return;
    this.walking = { position, sentences, first: 0, last: 0 };
    this.showWalk();
  }

  showWalk() {
    const { position, sentences, first, last } = this.walking;
    const span = { position, start: sentences[first].start, end: sentences[last].end };
    this.paint("candidate", [span]);
    const { text } = this.cards[position];
    const box = rangeOf(text, span.start, span.end).getBoundingClientRect();
    const pane = text.getBoundingClientRect();
    if (box.top < pane.top || box.bottom > pane.bottom) text.scrollTop += box.top - pane.top - 24;
    text.closest("[data-card]").scrollIntoView({ block: "nearest" });
    const words = gettext("%(text)s — Enter marks it, arrows move, Shift and arrow takes more, Escape ends.");
    announce(fill(words, { text: text.textContent.slice(span.start, span.end) }));
    return span;
  }

  onWalkKey(key, shift) {
    const step = { arrowdown: 1, arrowright: 1, j: 1, arrowup: -1, arrowleft: -1, k: -1 }[key.replace("shift+", "")];
    const { walking } = this;
    if (step && shift) walking.last = clamp(walking.last + step, walking.first, walking.sentences.length - 1);
    else if (step)
      walking.first = walking.last = clamp(
        (step > 0 ? walking.last : walking.first) + step,
        0,
        walking.sentences.length - 1,
      );
    else if (key === "escape") return this.stopWalking();
    else if (key !== "enter" && key !== "h") return;
    const span = this.showWalk();
    if (!step) this.start(span);
  }

  stopWalking() {
    if (!this.walking) return;
    this.walking = null;
    this.paint("candidate", []);
  }
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function shorten(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

function offsetOf(root, node, offset) {
  const range = document.createRange();
  range.setStart(root, 0);
  range.setEnd(node, offset);
  return range.toString().length;
}

function rangeOf(root, start, end) {
  const range = document.createRange();
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let seen = 0;
  let isStarted = false;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const after = seen + node.length;
    if (!isStarted && start < after) {
      range.setStart(node, start - seen);
      isStarted = true;
    }
    if (isStarted && end <= after) {
      range.setEnd(node, end - seen);
      return range;
    }
    seen = after;
  }
  if (isStarted) range.setEnd(root, root.childNodes.length);
  return range;
}

// Sentences, and never over the end of a line.
function sentencesOf(text) {
  const segmenter = new Intl.Segmenter(document.documentElement.lang, { granularity: "sentence" });
  return [...segmenter.segment(text)]
    .filter(({ segment }) => segment.trim())
    .map(({ segment, index }) => {
      const start = index + segment.length - segment.trimStart().length;
      return { start, end: start + segment.trim().length };
    });
}
