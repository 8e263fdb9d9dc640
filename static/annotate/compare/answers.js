// What the form asks, and what has been answered: the comparison as a whole first, then each aspect.
//
// The form's fields are the truth; keys, board and buttons only set them. A question with cards wants a place or a
// rating for each; a question with a choice wants one verdict, or the best card.

import { announce, element, fill, gettext } from "./dom.js";

const NAME = /^(?:(.+)-)?(verdict|best|place|rating)(?:-(\d+))?$/;
const VERDICT_KEYS = { 1: "a-strongly", 2: "a-slightly", 3: "tie", 4: "b-slightly", 5: "b-strongly", 0: "both-bad" };

class Field {
  // One name of the form: a list, a group of radio buttons, or buttons of which one is pressed.
  constructor(form, name) {
    this.name = name;
    this.controls = [...form.elements].filter((control) => control.name === name && control.type !== "hidden");
    this.isPressed = this.controls[0].type === "submit";
    if (this.isPressed) this.keepPressed(form);
  }

  // A button's value is sent only with its press, so a hidden field holds it from then on.
  keepPressed(form) {
    const before = this.controls.find((button) => button.ariaPressed === "true");
    this.hidden =
      form.querySelector(`input[type="hidden"][name="${this.name}"]`) ?? element("input", { type: "hidden" });
    Object.assign(this.hidden, { name: this.name, disabled: !before, value: before?.value ?? "" });
    form.append(this.hidden);
  }

  get value() {
    if (this.isPressed) return this.hidden.value;
    if (this.controls[0].type === "radio") return this.controls.find((radio) => radio.checked)?.value ?? "";
    return this.controls[0].value;
  }

  set value(value) {
    if (this.isPressed) {
      this.hidden.value = value;
      this.hidden.disabled = !value;
      for (const button of this.controls) button.ariaPressed = String(button.value === value);
    } else if (this.controls[0].type === "radio") {
      for (const radio of this.controls) radio.checked = radio.value === value;
    } else {
      this.controls[0].value = value;
    }
  }

  has(value) {
    const options = this.controls[0].options ?? this.controls;
    return [...options].some((option) => option.value === value);
  }
}

export class Question {
  constructor(form, prefix, kind, fields) {
    this.prefix = prefix;
    this.kind = kind;
    this.fields = fields;
    this.words = prefix.replaceAll(/[-_]/g, " ");
    this.root = prefix ? form.querySelector(`[data-aspect="${CSS.escape(prefix)}"]`) : null;
  }

  get isPerCard() {
    return this.kind === "place" || this.kind === "rating";
  }

  // Indices of cards (or 0 for a choice) that have no answer yet.
  get missing() {
    return this.fields.flatMap((field, index) => (field.value ? [] : [index]));
  }
}

export class Answers {
  constructor(form, cards, { needsSubmit }) {
    this.form = form;
    this.cards = cards;
    this.needsSubmit = needsSubmit;
    this.questions = this.findQuestions();
    this.active = 0;
    this.undone = [];
    this.listeners = [];
    this.known = this.snapshot();
    form.addEventListener("change", (event) => this.noticed(event.target));
    form.addEventListener("focusin", (event) => this.lookedAt(event.target));
  }

  findQuestions() {
    const found = new Map();
    for (const { name, type } of this.form.elements) {
      const [, prefix = "", kind] = name?.match(NAME) ?? [];
      if (!kind || type === "hidden") continue;
      const question = found.get(prefix) ?? { kind, names: new Set() };
      found.set(prefix, question);
      question.names.add(name);
    }
    const order = [...found].sort(([a], [b]) => Number(a !== "") - Number(b !== "")); // the whole comes first
    return order.map(([prefix, { kind, names }]) => {
      const fields = [...names].map((name) => new Field(this.form, name));
      return new Question(this.form, prefix, kind, fields);
    });
  }

  get fields() {
    return this.questions.flatMap((question) => question.fields);
  }

  get overall() {
    return this.questions[0];
  }

  get question() {
    return this.questions[this.active];
  }

  get isUntouched() {
    return this.undone.length === 0;
  }

  // Called with true when an answer has changed, with false when only the focus has.
  onChange(listener) {
    this.listeners.push(listener);
  }

  tellListeners(hasChanged) {
    this.listeners.forEach((listener) => listener(hasChanged));
  }

  snapshot() {
    return Object.fromEntries(this.fields.map((field) => [field.name, field.value]));
  }

  find(name) {
    return this.fields.find((field) => field.name === name);
  }

  set(field, value) {
    if (field.value === value) return;
    field.value = value;
    this.noticed(field.controls[0]);
  }

  // A field has changed, by whatever hand: keep what it was for the undo, and tell.
  noticed(control) {
    const field = this.find(control.name);
    if (!field || field.value === this.known[field.name]) return;
    this.undone.push([field.name, this.known[field.name]]);
    this.known[field.name] = field.value;
    this.changed(field);
  }

  changed(field) {
    this.tellListeners(true);
    announce(this.tell(field));
  }

  undo() {
    const last = this.undone.pop();
    if (!last) return announce(gettext("Nothing to undo."));
    const field = this.find(last[0]);
    this.known[field.name] = field.value = last[1];
    this.active = this.questions.findIndex((question) => question.fields.includes(field));
    this.changed(field);
    const card = this.question.isPerCard ? this.cards[this.question.fields.indexOf(field)] : null;
    if (this.focusedCard && card) focusCard(card);
  }

  tell(field) {
    const question = this.questions.find((candidate) => candidate.fields.includes(field));
    const left = question.missing.length;
    const about = question.words ? `${question.words}: ` : "";
    if (!question.isPerCard) return about + (labelOf(field) || gettext("Nothing chosen."));
    const values = { letter: this.cards[question.fields.indexOf(field)].letter, value: field.value, left };
    const what = fill(this.wordsFor(question, field.value), values);
    const rest = left ? fill(gettext("%(left)s to go."), values) : gettext("All are done: press Enter to submit.");
    return `${about}${what} ${rest}`;
  }

  wordsFor({ kind }, value) {
    if (value === "bad") return gettext("Response %(letter)s: bad.");
    if (kind === "place")
      return value ? gettext("Response %(letter)s: place %(value)s.") : gettext("Response %(letter)s: not placed.");
    return value ? gettext("Response %(letter)s: rated %(value)s.") : gettext("Response %(letter)s: not rated.");
  }

  // The question in whose field somebody stands is the one that keys answer.
  lookedAt(target) {
    const index = this.questions.findIndex(
      ({ root, fields }) => root?.contains(target) || fields.some((field) => field.controls.includes(target)),
    );
    if (index >= 0) this.active = index;
    this.tellListeners(false);
  }

  nextQuestion() {
    if (this.questions.length < 2) return false;
    this.active = (this.active + 1) % this.questions.length;
    const { root, words } = this.question;
    root?.scrollIntoView({ block: "nearest" });
    announce(words || gettext("As a whole"));
    this.tellListeners(false);
    return true;
  }

  get focusedCard() {
    return this.cards.find((card) => card.element.contains(document.activeElement)) ?? null;
  }

  // The card that a digit is for: the one in focus, else the first without an answer.
  get activeCard() {
    if (!this.question?.isPerCard) return this.focusedCard;
    return this.focusedCard ?? this.cards[this.question.missing[0]] ?? null;
  }

  moveFocus(step) {
    const index = this.cards.indexOf(this.focusedCard);
    const next = index < 0 ? (step > 0 ? 0 : this.cards.length - 1) : index + step;
    if (this.cards[next]) focusCard(this.cards[next]);
  }

  // Whether the key answered something. A shifted digit is ten more: places 10 to 12.
  onKey(key) {
    const { question } = this;
    if (!question) return false;
    const [, shift, digit] = key.match(/^(shift\+)?(\d)$/) ?? [];
    if (question.kind === "best" && /^shift\+[a-z]$/.test(key)) return this.choose(String(key.charCodeAt(6) - 97));
    if (key === "b" && question.kind === "place") return this.answerCard("bad");
    if (digit === undefined) return false;
    if (question.kind === "verdict") return this.choose(VERDICT_KEYS[digit]);
    if (question.kind === "best")
      return this.choose(digit === "0" && !shift ? "none" : String(Number(digit) - 1 + (shift ? 10 : 0)));
    if (question.kind === "rating") return this.answerCard(digit === "0" ? "10" : digit);
    if (digit === "0" && !shift) return this.answerCard("bad");
    return this.answerCard(shift && this.cards.length >= 10 ? String(10 + Number(digit)) : digit);
  }

  choose(value) {
    const { question } = this;
    const [field] = question.fields;
    const control = field.controls.find((candidate) => candidate.value === value);
    if (!control) return false;
    control.click();
    this.goOn(question);
    return true;
  }

  answerCard(value) {
    const { question, activeCard } = this;
    const field = activeCard && question.fields[this.cards.indexOf(activeCard)];
    if (!field?.has(value)) return false;
    this.set(field, value);
    if (this.activeCard !== activeCard) this.activeCard?.element.scrollIntoView({ block: "nearest" });
    this.goOn(question);
    return true;
  }

  // Answered by key: the next question without an answer takes the next key.
  goOn(question) {
    if (question.missing.length) return;
    const next = this.questions.findIndex((candidate) => candidate.missing.length > 0);
    if (next < 0 || next === this.active) return;
    this.active = next;
    this.question.root?.scrollIntoView({ block: "nearest" });
    this.tellListeners(false);
  }
}

function focusCard(card) {
  card.element.focus();
  card.element.scrollIntoView({ block: "nearest" });
}

function labelOf(field) {
  const control = field.controls.find((candidate) => candidate.value === field.value);
  const text = control?.labels?.[0]?.textContent ?? control?.textContent ?? "";
  return text.replace(/\s+/g, " ").trim();
}
