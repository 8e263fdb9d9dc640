// The board of a list: a row for each place and one for the bad ones, with a chip for each response, to be dragged by
// mouse or touch. It shows and sets the selects in the cards, which the form sends.

import { element, fill, gettext } from "./dom.js";

export class Board {
  constructor(aside, answers) {
    this.aside = aside;
    this.answers = answers;
    this.fields = answers.overall.fields;
    this.build();
    answers.cards.forEach((card, index) => this.addButtons(card, this.fields[index]));
    answers.onChange(() => this.refresh());
    this.refresh();
  }

  get places() {
    const last = this.answers.cards.length;
    const numbers = Array.from({ length: last }, (_, index) => String(index + 1));
    return [
      { value: "", name: gettext("To place"), words: gettext("Not placed yet") },
      ...numbers.map((value) => ({
        value,
        name:
          value === "1"
            ? gettext("1 Best")
            : value === String(last)
              ? fill(gettext("%(place)s Worst"), { place: value })
              : value,
        words: fill(gettext("Place %(place)s"), { place: value }),
      })),
      { value: "bad", name: gettext("Bad"), words: gettext("Not acceptable") },
    ];
  }

  build() {
    const tiers = element("div", { className: "tiers" });
    this.slots = this.places.map(({ value, name, words }) => {
      const slot = element("ol", { className: "slot", ariaLabel: words, dataset: { place: value } });
      tiers.append(
        element(
          "div",
          { className: `tier ${value === "bad" ? "is-bad" : ""}` },
          element("span", { className: "tier-name" }, name),
          slot,
        ),
      );
      window.Sortable.create(slot, {
        group: "board",
        animation: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 120,
        ghostClass: "is-dragged",
        forceFallback: true,
        fallbackTolerance: 4,
        onEnd: (event) => this.dropped(event),
      });
      return slot;
    });
    this.aside.replaceChildren(
      element("h2", {}, gettext("Your order")),
      element("p", { className: "muted" }, gettext("Drag each letter into a row. The same row is a tie.")),
      tiers,
    );
    this.aside.hidden = false;
    this.chips = this.answers.cards.map((card) => this.makeChip(card));
    this.slots[0].append(...this.chips);
    // it keeps its size as it empties: no row moves under the pointer
    this.slots[0].style.minHeight = `${this.slots[0].offsetHeight}px`;
  }

  makeChip(card) {
    const snippet = card.text.textContent.trim().slice(0, 80);
    const chip = element(
      "li",
      { className: "chip", dataset: { chip: card.letter } },
      element("span", { className: "letter" }, card.letter),
      element("span", { className: "snippet", dir: "auto" }, snippet),
    );
    chip.addEventListener("click", () => card.element.focus());
    return chip;
  }

  // One press places a card: for fingers, in place of the select (the stylesheet shows one or the other).
  addButtons(card, field) {
    const group = element("div", {
      className: "place-buttons",
      role: "group",
      ariaLabel: fill(gettext("Where to put %(letter)s"), card),
    });
    for (const { value, words } of this.places.slice(1)) {
      const button = element(
        "button",
        { type: "button", className: "place-button", value, title: words },
        value === "bad" ? gettext("Bad") : value,
      );
      button.addEventListener("click", () => this.answers.set(field, field.value === value ? "" : value));
      group.append(button);
    }
    card.buttons = group;
    card.element.querySelector("header").after(group);
  }

  dropped(event) {
    // Where the pointer let go counts; Sortable looks only every 50 ms, and a quick hand is faster.
    const { clientX, clientY } = event.originalEvent.changedTouches?.[0] ?? event.originalEvent;
    const slot = document.elementFromPoint(clientX, clientY)?.closest(".slot") ?? event.to;
    this.answers.set(this.fields[this.chips.indexOf(event.item)], slot.dataset.place);
    this.refresh();
  }

  refresh() {
    this.answers.cards.forEach((card, index) => {
      const { value } = this.fields[index];
      const slot = this.slots.find((candidate) => candidate.dataset.place === value);
      if (this.chips[index].parentElement !== slot) slot.append(this.chips[index]);
      for (const button of card.buttons.children) button.ariaPressed = String(button.value === value);
    });
  }
}
