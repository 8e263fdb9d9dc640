// One comparison on the page: its answers, board, draft, clock and keys. It starts anew with every comparison.

import { Answers } from "./answers.js";
import { Board } from "./board.js";
import { Clock } from "./clock.js";
import { Help, Reasons, pressDigit, showKeys } from "./dialogs.js";
import { Display } from "./display.js";
import { announce, element, fill, gettext, isTyping, keyOf } from "./dom.js";
import { Draft } from "./draft.js";
import { Highlights } from "./highlights.js";

const SETTLE_MS = 400; // the second half of a double click must not judge the comparison that has just come
const GUIDELINES = "plumbline-guidelines";
const NOT_SENT = new Set(["csrfmiddlewaretoken", "besides", "placement", "seconds", "total_seconds"]);

export class ComparisonPage {
  // `flow` sends what was answered, and shows what comes next.
  constructor(root, flow) {
    this.root = root;
    this.flow = flow;
    this.html = root.outerHTML; // as the server made it, to show it again
    this.id = root.dataset.id ?? null;
    this.isRevising = "revising" in root.dataset;
    this.form = root.querySelector("[data-judgment]");
    this.shownAt = performance.now();
    if (!this.form) return;
    this.cards = [...root.querySelectorAll("[data-card]")].map(makeCard);
    this.clock = new Clock(Number(this.form.elements.seconds?.value) || 0);
    this.draft = new Draft({
      user: root.dataset.user,
      id: this.id,
      form: this.form,
      url: root.dataset.draftUrl,
      clock: this.clock,
      onGone: () => this.tellGone(),
    });
    this.draft.restore(this.hasErrors);
    this.answers = new Answers(this.form, this.cards, { needsSubmit: "needsSubmit" in this.form.dataset });
    const aside = root.querySelector("[data-board]");
    if (aside) this.board = new Board(aside, this.answers);
    this.answers.onChange((hasChanged) => this.answered(hasChanged));
    this.display = new Display(root, this.cards, root.querySelector("[data-tools]"));
    const marks = root.querySelector("[data-highlights]");
    if (marks) this.highlights = new Highlights(root, this.cards, marks);
    this.setUpExtras();
    this.setUpDialogs();
    this.setUpGuidelines();
    this.watchBar();
    showKeys(root);
    this.refresh();
    this.form.addEventListener("submit", (event) => this.submit(event));
    this.form.addEventListener("keydown", (event) => this.keepFromImplicitSubmit(event));
    setTimeout(() => this.isLocked || (root.dataset.ready = ""), SETTLE_MS);
  }

  get hasErrors() {
    return this.root.querySelector("[data-errors]") !== null;
  }

  get isUntouched() {
    return this.answers.isUntouched;
  }

  close({ forget }) {
    if (!this.form) return;
    this.draft.close({ forget });
    this.display.close();
    this.highlights?.close();
    this.barObserver?.disconnect();
  }

  // Submitted, and nothing to show yet.
  lock() {
    this.isLocked = true;
    delete this.root.dataset.ready;
    this.root.ariaBusy = "true";
    this.root.querySelector(".bar").disabled = true;
  }

  setUpExtras() {
    this.extras = this.root.querySelector("[data-extras]");
    const select = this.form.elements.edit_of;
    const textarea = this.form.elements.edit;
    if (!select || !textarea) return;
    // Which answer is edited gives the text to begin with, as long as nothing of one's own is lost.
    let filledIn = textarea.value ? null : "";
    select.addEventListener("change", () => {
      if (textarea.value !== filledIn) return;
      filledIn = this.cards[select.value]?.source ?? "";
      textarea.value = filledIn;
      this.draft.changed();
    });
  }

  setUpDialogs() {
    const send = (what) => (url, fields) => this.flow.sendReason(this, what, url, fields);
    const skip = this.root.querySelector("[data-skip-dialog]");
    const flag = this.root.querySelector("[data-flag-dialog]");
    if (skip) this.skip = new Reasons(skip, this.root.querySelectorAll("[data-open-skip]"), send("skip"));
    if (flag) this.flag = new Reasons(flag, this.root.querySelectorAll("[data-open-flag]"), send("flag"));
    this.root.querySelectorAll("[data-plain-skip]").forEach((plain) => (plain.hidden = true));
    this.root.querySelectorAll("[data-card] button[name=best]").forEach((button, index) => {
      if (index < 9) button.append(" ", element("kbd", { dataset: { keysOnly: "" } }, String(index + 1)));
    });
    this.actions = this.findActions();
    this.help = new Help(this.root, [...this.answerRows(), ...this.actions.map(({ show, words }) => [show, words])]);
  }

  setUpGuidelines() {
    this.guidelines = this.root.querySelector("[data-guidelines]");
    if (!this.guidelines) return;
    this.guidelines.open = sessionStorage.getItem(GUIDELINES) === "open";
    this.guidelines.addEventListener("toggle", () => {
      sessionStorage.setItem(GUIDELINES, this.guidelines.open ? "open" : "");
    });
  }

  // What is focused must not lie behind the bar, however many lines it has.
  watchBar() {
    const bar = this.root.querySelector(".bar");
    const tell = () => {
      const isSticky = getComputedStyle(bar).position === "sticky";
      document.documentElement.style.setProperty("--bar-height", isSticky ? `${bar.offsetHeight}px` : "0px");
    };
    this.barObserver = new ResizeObserver(tell);
    this.barObserver.observe(bar);
  }

  answered(hasChanged) {
    this.refresh();
    if (!hasChanged) return;
    this.draft.changed();
    this.showTrouble("");
  }

  refresh() {
    const { activeCard, question, overall, questions } = this.answers;
    for (const card of this.cards) card.element.classList.toggle("is-current", card === activeCard);
    for (const asked of questions) asked.root?.classList.toggle("is-current", asked === question);
    const confirm = this.root.querySelector("[data-confirm]");
    if (confirm) confirm.hidden = overall.missing.length < this.cards.length;
    const status = this.root.querySelector("[data-status]");
    if (status) status.textContent = this.statusWords;
  }

  get statusWords() {
    const { overall, questions } = this.answers;
    if (overall.isPerCard && overall.missing.length) {
      const letters = overall.missing.map((index) => this.cards[index].letter).join(", ");
      const values = { done: this.cards.length - overall.missing.length, all: this.cards.length, letters };
      const words =
        overall.kind === "place"
          ? gettext("%(done)s of %(all)s placed. To place: %(letters)s.")
          : gettext("%(done)s of %(all)s rated. To rate: %(letters)s.");
      return fill(words, values);
    }
    const open = questions.filter(({ missing }) => missing.length).map(({ words }) => words || gettext("overall"));
    if (open.length && questions.length === 1) return gettext("Choose the best one.");
    if (open.length) return fill(gettext("To answer: %(names)s."), { names: open.join(", ") });
    if (questions.length > 1) return gettext("All is answered.");
    return overall.kind === "rating" ? gettext("All are rated.") : gettext("All are placed.");
  }

  showTrouble(words) {
    const trouble = this.root.querySelector("[data-trouble]");
    trouble.hidden = !words;
    trouble.textContent = words;
  }

  tellGone() {
    this.flow.notice(
      gettext(
        "You were away for long, and this comparison went to somebody else. You can still judge it: your answer is kept as an extra one.",
      ),
    );
  }

  focusFirst() {
    const target = this.root.querySelector("[data-errors]") ?? this.root.querySelector("[data-heading]");
    target?.focus({ preventScroll: true });
  }

  submit(event) {
    event.preventDefault();
    const { submitter } = event;
    if (this.isLocked || performance.now() - this.shownAt < SETTLE_MS) return;
    if (submitter?.hasAttribute("formaction"))
      return this.flow.sendReason(this, "skip", submitter.getAttribute("formaction"), []);
    const choice = this.answers.find(submitter?.name);
    if (choice && this.answers.needsSubmit) return this.answers.set(choice, submitter.value);
    const isConfirmed = submitter?.name === "confirm";
    const given = choice || isConfirmed ? this.answers.overall : null; // by this very press
    const missing = this.answers.questions.find((question) => question !== given && question.missing.length > 0);
    if (missing) return this.askFor(missing);
    this.flow.sendJudgment(this, this.fieldsToSend(submitter, isConfirmed));
  }

  fieldsToSend(submitter, isConfirmed) {
    const entered = [...new FormData(this.form)].filter(([name]) => !NOT_SENT.has(name) && name !== submitter?.name);
    return [
      ...entered,
      ["placement", isConfirmed ? "confirmed" : "placed"],
      ["seconds", this.clock.seconds.toFixed(1)],
      ["total_seconds", this.draft.totalSeconds.toFixed(1)],
      ...(submitter?.name ? [[submitter.name, submitter.value]] : []),
    ];
  }

  askFor(question) {
    const words = this.statusWords;
    this.showTrouble(words);
    this.answers.active = this.answers.questions.indexOf(question);
    this.refresh();
    const control = question.isPerCard
      ? this.answers.cards[question.missing[0]].element
      : question.fields[0].controls[0];
    control.focus();
    control.scrollIntoView({ block: "nearest" });
  }

  // Enter in a field presses a form's first button, which here would be an answer.
  keepFromImplicitSubmit(event) {
    if (event.key !== "Enter" || !event.target.matches("input:not([type=checkbox])")) return;
    event.preventDefault();
    if (this.act.has("enter")) this.submitByKey();
  }

  // Keys that answer, for the help.
  answerRows() {
    const { kind } = this.answers.overall;
    const rows = [];
    if (kind === "verdict") {
      for (const { value, textContent } of this.answers.overall.fields[0].controls) {
        rows.push([[DIGIT_OF[value]], textContent.replace(/\s*\d\s*$/, "").trim()]);
      }
    }
    if (kind === "best") {
      rows.push(
        [["1", "…"], gettext("Choose that response; Shift and its letter does the same")],
        [["0"], gettext("None of them is good")],
      );
    }
    if (kind === "place") {
      rows.push(
        [["1", "…"], gettext("Put the marked response in that place; the same place twice is a tie")],
        ...(this.cards.length > 9 ? [[["Shift", "0"], gettext("Place 10; Shift and 1 is 11, Shift and 2 is 12")]] : []),
        [["B", "0"], gettext("Put the marked response among the bad ones")],
      );
    }
    if (kind === "rating") rows.push([["1", "…"], gettext("Rate the marked response")]);
    if (kind === "place" || kind === "rating" || this.highlights) {
      rows.push([["J", "→"], gettext("Next response")], [["K", "←"], gettext("Previous response")]);
    }
    if (this.answers.questions.length > 1) rows.push([["A"], gettext("Next aspect: digits answer it")]);
    return rows;
  }

  findActions() {
    const { answers, root } = this;
    const isRightToLeft = document.documentElement.dir === "rtl";
    const has = (selector) => root.querySelector(selector) !== null;
    const forward = () => answers.moveFocus(1);
    const back = () => answers.moveFocus(-1);
    const undo = () => (this.isUntouched ? this.flow.goBack() : answers.undo());
    const actions = [
      {
        keys: ["enter"],
        show: ["Enter"],
        words: gettext("Submit, once all is answered"),
        act: () => this.submitByKey(),
        when: has("[data-submit]"),
      },
      {
        keys: ["c"],
        show: ["C"],
        words: gettext("The order shown is right"),
        act: () => press(root, "[data-confirm]"),
        when: has("[data-confirm]"),
      },
      {
        keys: ["u", "z"],
        show: ["U", "Z"],
        words: gettext("Undo; on an untouched page, go back to the last judgment"),
        act: undo,
      },
      {
        keys: ["n"],
        show: ["N"],
        words: gettext("On to the next comparison, leaving this answer as it was"),
        act: () => this.flow.goOn(),
        when: this.isRevising,
      },
      { keys: ["s"], show: ["S"], words: gettext("Skip, with a reason"), act: () => this.skip.open(), when: this.skip },
      { keys: ["f"], show: ["F"], words: gettext("Flag, with a reason"), act: () => this.flag.open(), when: this.flag },
      {
        keys: ["g"],
        show: ["G"],
        words: gettext("Show or hide the guidelines"),
        act: () => this.toggleGuidelines(),
        when: has("[data-guidelines]"),
      },
      {
        keys: ["d"],
        show: ["D"],
        words: gettext("Show or hide the difference"),
        act: () => this.display.diff.toggle(),
      },
      {
        keys: ["x"],
        show: ["X"],
        words: gettext("Show answers whole, or cut to the same height"),
        act: () => this.display.toggleLength(),
      },
      {
        keys: ["y"],
        show: ["Y"],
        words: gettext("Scroll both answers together, or each by itself"),
        act: () => this.display.toggleStep(),
        when: this.display.stepButton,
      },
      {
        keys: ["h"],
        show: ["H"],
        words: gettext("Mark the selected text, or choose a sentence to mark"),
        act: () => this.highlights.onKey(answers.focusedCard),
        when: this.highlights,
      },
      {
        keys: ["r"],
        show: ["R"],
        words: gettext("Write why"),
        act: () => this.write("[data-rationale]"),
        when: has("[data-rationale]"),
      },
      {
        keys: ["e"],
        show: ["E"],
        words: gettext("Write a better answer"),
        act: () => this.write("[name=edit]"),
        when: has("[name=edit]"),
      },
      { keys: ["?"], show: ["?"], words: gettext("Show these keys"), act: () => this.help.open() },
      { keys: ["j", isRightToLeft ? "arrowleft" : "arrowright"], act: forward },
      { keys: ["k", isRightToLeft ? "arrowright" : "arrowleft"], act: back },
      { keys: ["a"], act: () => answers.nextQuestion() },
    ];
    const usable = actions.filter((action) => !("when" in action) || action.when);
    this.act = new Map(usable.flatMap(({ keys, act }) => keys.map((key) => [key, act])));
    return usable.filter(({ words }) => words);
  }

  submitByKey() {
    this.root.querySelector("[data-submit]").click();
  }

  toggleGuidelines() {
    this.guidelines.open = !this.guidelines.open;
    if (this.guidelines.open) this.guidelines.scrollIntoView({ block: "nearest" });
  }

  write(selector) {
    const { activeElement } = document;
    if (this.extras) this.extras.open = true;
    const textarea = this.form.querySelector(selector);
    textarea.focus();
    textarea.scrollIntoView({ block: "center" });
    this.cameFrom = activeElement;
  }

  onKey(event) {
    const dialog = document.querySelector("dialog[open]");
    if (dialog) return !isTyping(event.target) && pressDigit(dialog, keyOf(event));
    const key = keyOf(event);
    if (isTyping(event.target)) return this.onTypingKey(event, key);
    if (this.isLocked || event.ctrlKey || event.altKey || event.metaKey) return false;
    if (this.highlights?.walking && /^(shift\+)?(arrow\w+|[jkh]|enter|escape)$/.test(key)) {
      this.highlights.onWalkKey(key, event.shiftKey);
      return true;
    }
    if (key === "enter" && event.target.closest("a, button, summary, input[type=checkbox]")) return false;
    const isRadio = event.target.matches("input[type=radio]");
    if (isRadio && key.startsWith("arrow")) return false; // the browser's own way to choose
    if (key.startsWith("arrow") && event.target.closest(".is-cut, [data-diff-view], .prompt")) return false; // it scrolls
    if (this.answers.onKey(key)) return true;
    const act = this.act.get(key.replace("shift+", ""));
    if (act) act();
    return act !== undefined;
  }

  // In a field letters are letters; Escape leaves it, and Ctrl+Enter sends from a text.
  onTypingKey(event, key) {
    if (key === "escape") {
      event.target.blur();
      (this.cameFrom?.isConnected ? this.cameFrom : this.root.querySelector("[data-heading]")).focus({
        preventScroll: true,
      });
      return true;
    }
    if (key !== "enter" || !(event.ctrlKey || event.metaKey) || !this.act.has("enter")) return false;
    this.submitByKey();
    return true;
  }
}

const DIGIT_OF = {
  "a-strongly": "1",
  "a-slightly": "2",
  tie: "3",
  "b-slightly": "4",
  "b-strongly": "5",
  "both-bad": "0",
};

function makeCard(element) {
  if (!element.hasAttribute("tabindex")) element.tabIndex = -1;
  const text = element.querySelector("[data-text]");
  return {
    element,
    text,
    letter: element.dataset.card,
    // the Markdown as it was written, where the page holds it
    get source() {
      return element.querySelector("template[data-source]")?.content.textContent ?? text.innerText;
    },
  };
}

function press(root, selector) {
  const button = root.querySelector(selector);
  if (button.hidden) announce(gettext("Some are placed already: undo that first."));
  else button.click();
}
