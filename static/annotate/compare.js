// The comparison page: keys, the board for lists, time on task, and what happens when the network fails.
//
// The plain form is the truth: a key presses a button or sets a <select>, a dragged chip sets a <select>. So all of it
// works without this script, and the server sees no difference. htmx swaps #comparison; everything here starts anew
// with each one.

const SETTLE_MS = 400; // the second half of a double click must not judge the comparison that has just come
const DRAFT = "plumbline-draft";
const NO_KEYS = "plumbline-no-keys";
const GUIDELINES = "plumbline-guidelines";

let current = null; // the comparison on show

class Clock {
  // Seconds in view: a tab in the background does not count.
  constructor(before) {
    this.total = before;
    this.since = document.hidden ? null : performance.now();
  }

  pause() {
    this.total = this.seconds;
    this.since = null;
  }

  resume() {
    this.since ??= performance.now();
  }

  get seconds() {
    return this.total + (this.since === null ? 0 : (performance.now() - this.since) / 1000);
  }
}

class Board {
  // Places of a list: chips in rows for the pointer, digits for the keyboard, both over the selects.
  constructor(root, form) {
    this.root = root;
    this.form = form;
    this.cards = [...form.querySelectorAll("[data-card]")].map((element) => ({
      element,
      letter: element.dataset.card,
      select: element.querySelector("select"),
    }));
    this.undone = [];
    this.restore();
    this.build();
    this.refresh();
    form.addEventListener("change", (event) => this.changed(event));
    form.addEventListener("focusin", () => this.refresh());
  }

  build() {
    const aside = this.root.querySelector("[data-board]");
    aside.replaceChildren(
      element("h2", {}, "Your order"),
      element("p", { className: "muted" }, "Drag each letter into a row. The same row is a tie."),
    );
    const tiers = element("div", { className: "tiers" });
    const last = this.cards.length;
    for (let place = 0; place <= last; place += 1) {
      const name = place === 0 ? "To place" : place === 1 ? "1 Best" : place === last ? `${place} Worst` : `${place}`;
      const slot = element("ol", { className: "slot", ariaLabel: place ? `Place ${name}` : "Not placed yet" });
      slot.dataset.place = place || "";
      const tier = element("div", { className: "tier" }, element("span", { className: "tier-name" }, name), slot);
      tiers.append(tier);
      window.Sortable.create(slot, {
        group: "board",
        animation: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 120,
        ghostClass: "is-dragged",
        forceFallback: true,
        onEnd: (event) => this.dropped(event),
      });
    }
    aside.append(tiers);
    aside.hidden = false;
    const tray = tiers.querySelector('[data-place=""]');
    for (const card of this.cards) {
      const snippet = card.element.querySelector("[data-text]").textContent.trim().slice(0, 80);
      card.chip = element(
        "li",
        { className: "chip" },
        element("span", { className: "letter" }, card.letter),
        element("span", { className: "snippet", dir: "auto" }, snippet),
      );
      card.chip.dataset.chip = card.letter;
      card.chip.addEventListener("click", () => this.focus(card));
      tray.append(card.chip);
    }
    tray.style.minHeight = `${tray.offsetHeight}px`; // it keeps its size as it empties: no row moves under the pointer
  }

  dropped(event) {
    // Where the pointer let go counts; Sortable looks only every 50 ms, and a quick hand is faster.
    const { clientX, clientY } = event.originalEvent.changedTouches?.[0] ?? event.originalEvent;
    const slot = document.elementFromPoint(clientX, clientY)?.closest(".slot") ?? event.to;
    const card = this.cards.find((candidate) => candidate.chip === event.item);
    this.place(card, slot.dataset.place);
    this.refresh();
  }

  changed(event) {
    const card = this.cards.find((candidate) => candidate.select === event.target);
    if (card) {
      this.undone.push([card, card.place]);
      this.settle(card);
    }
    this.save();
  }

  place(card, place) {
    if (card.select.value === place) return;
    this.undone.push([card, card.select.value]);
    card.select.value = place;
    this.settle(card);
    this.save();
  }

  settle(card) {
    this.refresh();
    const left = this.unplaced.length;
    const where = card.select.value ? `place ${card.select.value}` : "not placed";
    announce(`Response ${card.letter}: ${where}. ${left ? `${left} to place.` : "All are placed: press Enter to submit."}`);
  }

  refresh() {
    const active = this.active;
    for (const card of this.cards) {
      card.place = card.select.value;
      const slot = this.root.querySelector(`.slot[data-place="${card.place}"]`);
      if (card.chip.parentElement !== slot) slot.append(card.chip);
      card.element.classList.toggle("is-current", card === active);
    }
    const left = this.unplaced.map((card) => card.letter);
    this.root.querySelector("[data-status]").textContent = left.length
      ? `${this.cards.length - left.length} of ${this.cards.length} placed. To place: ${left.join(", ")}.`
      : "All are placed.";
  }

  get unplaced() {
    return this.cards.filter((card) => !card.select.value);
  }

  get focused() {
    return this.cards.find((card) => card.element.contains(document.activeElement)) ?? null;
  }

  // The card that a digit places: the one in focus, else the first that has no place yet.
  get active() {
    return this.focused ?? this.unplaced[0] ?? null;
  }

  focus(card) {
    card.element.focus();
    card.element.scrollIntoView({ block: "nearest" });
  }

  move(step) {
    const index = this.cards.indexOf(this.focused);
    const next = index < 0 ? (step > 0 ? 0 : this.cards.length - 1) : index + step;
    if (this.cards[next]) this.focus(this.cards[next]);
  }

  digit(place) {
    if (!this.active || place > this.cards.length) return;
    this.place(this.active, String(place));
    this.active?.element.scrollIntoView({ block: "nearest" });
  }

  undo() {
    const last = this.undone.pop();
    if (!last) return announce("Nothing to undo.");
    const [card, place] = last;
    card.select.value = place;
    this.settle(card);
    this.save();
    if (this.focused) this.focus(card);
  }

  // What was placed survives a reload and a new sign-in.
  save() {
    const places = this.cards.map((card) => card.select.value);
    const draft = { of: this.root.dataset.draft, places, allBad: this.form.elements.all_bad.checked };
    sessionStorage.setItem(DRAFT, JSON.stringify(draft));
  }

  restore() {
    const draft = JSON.parse(sessionStorage.getItem(DRAFT));
    if (draft?.of !== this.root.dataset.draft) return sessionStorage.removeItem(DRAFT);
    if (this.unplaced.length < this.cards.length) return; // the server sent back what was entered
    this.cards.forEach((card, index) => (card.select.value = draft.places[index]));
    this.form.elements.all_bad.checked = draft.allBad;
  }

  onKey(key, target) {
    if (/^[0-9]$/.test(key)) this.digit(Number(key) || 10);
    else if (key === "j" || key === "arrowright") this.move(1);
    else if (key === "k" || key === "arrowleft") this.move(-1);
    else if (key === "u") this.undo();
    else if (key === "n") this.form.elements.all_bad.click();
    else if (key === "enter" && !target.closest("a, button, summary, input")) {
      if (this.unplaced.length) announce(this.root.querySelector("[data-status]").textContent);
      else this.root.querySelector("[data-submit]").click();
    } else return false;
    return true;
  }
}

class ComparisonPage {
  constructor(root) {
    this.root = root;
    this.shownAt = performance.now();
    this.form = root.querySelector("[data-judgment]");
    this.help = root.querySelector("[data-help]");
    if (!this.form) return;
    this.clock = new Clock(Number(this.form.elements.seconds.value) || 0);
    this.board = root.querySelector("[data-board]") ? new Board(root, this.form) : null;
    this.setUpHelp();
    this.setUpGuidelines();
    showKeys(root);
    setTimeout(() => (root.dataset.ready = ""), SETTLE_MS);
  }

  get isSettled() {
    return performance.now() - this.shownAt >= SETTLE_MS;
  }

  setUpHelp() {
    const open = this.root.querySelector("[data-open-help]");
    open.hidden = false;
    open.addEventListener("click", () => this.openHelp());
    const useKeys = this.help.querySelector("[data-use-keys]");
    useKeys.checked = hasKeys();
    useKeys.addEventListener("change", () => {
      localStorage.setItem(NO_KEYS, useKeys.checked ? "" : "1");
      showKeys(this.root);
    });
  }

  openHelp() {
    this.help.showModal();
    this.help.querySelector("button").focus();
  }

  setUpGuidelines() {
    this.guidelines = this.root.querySelector("[data-guidelines]");
    if (!this.guidelines) return;
    this.guidelines.open = sessionStorage.getItem(GUIDELINES) === "open";
    this.guidelines.addEventListener("toggle", () => {
      sessionStorage.setItem(GUIDELINES, this.guidelines.open ? "open" : "");
    });
  }

  focusFirst() {
    const target = this.root.querySelector("[data-errors]") ?? this.root.querySelector("[data-heading]");
    target?.focus({ preventScroll: true });
  }

  showTrouble(words) {
    const trouble = this.root.querySelector("[data-trouble]");
    trouble.hidden = !words;
    trouble.textContent = words;
  }

  onKey(event) {
    const key = keyOf(event);
    const button = this.root.querySelector(`button[data-key="${CSS.escape(key)}"]`);
    if (key === "?") this.openHelp();
    else if (key === "g" && this.guidelines) this.guidelines.open = !this.guidelines.open;
    else if (button) button.click();
    else return this.board?.onKey(key, event.target) ?? false;
    return true;
  }
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function announce(words) {
  document.getElementById("announcer").textContent = words;
}

function hasKeys() {
  return !localStorage.getItem(NO_KEYS);
}

function showKeys(root) {
  root.querySelectorAll("[data-keys-only]").forEach((hint) => (hint.hidden = !hasKeys()));
}

// Digits count by their place on the keyboard too: on a French one they need Shift.
function keyOf(event) {
  const isDigit = /^Digit\d$/.test(event.code) && !event.shiftKey;
  return isDigit ? event.code.at(-1) : event.key.toLowerCase();
}

function isTyping(target) {
  return target.closest("input:not([type=checkbox]), select, textarea, [contenteditable]") !== null;
}

function start(root) {
  current = new ComparisonPage(root);
}

document.addEventListener("keydown", (event) => {
  const hasModifier = event.ctrlKey || event.altKey || event.metaKey;
  if (!current?.form || current.help.open || !hasKeys() || hasModifier || event.repeat || isTyping(event.target)) return;
  if (current.onKey(event)) event.preventDefault();
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) current?.clock?.pause();
  else current?.clock?.resume();
});

// Before htmx and before the browser: too soon is a slip of the finger; else the form takes its time along.
document.addEventListener(
  "submit",
  (event) => {
    if (event.target !== current?.form) return;
    if (!current.isSettled) {
      event.preventDefault();
      event.stopImmediatePropagation();
      return;
    }
    current.outcome = event.submitter?.hasAttribute("formaction") ? "Skipped." : "Saved.";
    current.form.elements.seconds.value = current.clock.seconds.toFixed(1);
    current.showTrouble("");
  },
  true,
);

document.addEventListener("htmx:afterSwap", () => {
  const root = document.querySelector("[data-comparison]");
  if (root === current?.root) return;
  const { outcome } = current;
  start(root);
  current.focusFirst();
  const heading = root.querySelector("[data-heading]").textContent;
  if (!root.querySelector("[data-errors]")) announce(`${outcome} ${heading}`);
});

const TROUBLE = "Nothing is lost: what you entered is still here. Try again.";
const onTrouble = (words) => () => current?.showTrouble(words);
document.addEventListener("htmx:sendError", onTrouble(`The server cannot be reached. ${TROUBLE}`));
document.addEventListener("htmx:timeout", onTrouble(`The server takes too long to answer. ${TROUBLE}`));
document.addEventListener("htmx:responseError", (event) => {
  const words = {
    403: "You have signed in or out in another tab. Reload the page to go on.",
    404: "This comparison is no longer yours. Reload the page to go on.",
  };
  current?.showTrouble(words[event.detail.xhr.status] ?? `The server met an error. ${TROUBLE}`);
});

start(document.querySelector("[data-comparison]"));
