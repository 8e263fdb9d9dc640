// What differs between two texts, word by word. Sentences that both have are set aside first, so that two long
// answers cost little; what is left between them is compared by words, or taken as replaced where that is too much.

const MOST_PAIRS = 4_000_000; // of sentences or words compared with one another: some 30 ms

// Pieces in reading order: {kind: "same" | "removed" | "added", text}.
export function difference(before, after) {
  const bySentence = align(split(before, "sentence"), split(after, "sentence"));
  const pieces = bySentence.flatMap(({ kind, left, right }) =>
    kind === "same"
      ? [{ kind, text: left.join("") }]
      : align(split(left.join(""), "word"), split(right.join(""), "word")).flatMap(toPieces),
  );
  return pieces.filter(({ text }) => text);
}

function toPieces({ kind, left, right }) {
  if (kind === "same") return [{ kind, text: left.join("") }];
  return [
    { kind: "removed", text: left.join("") },
    { kind: "added", text: right.join("") },
  ];
}

function split(text, granularity) {
  const segmenter = new Intl.Segmenter(undefined, { granularity });
  return [...segmenter.segment(text)].map(({ segment }) => segment);
}

// Runs that both have, and between them what only one has, by the longest common subsequence.
function align(left, right) {
  if (left.length * right.length > MOST_PAIRS) return [{ kind: "changed", left, right }];
  const width = right.length + 1;
  const longest = new Uint16Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      longest[i * width + j] =
        left[i] === right[j]
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const runs = [];
  const take = (kind, lefts, rights) => {
    if (runs.at(-1)?.kind !== kind) runs.push({ kind, left: [], right: [] });
    runs.at(-1).left.push(...lefts);
    runs.at(-1).right.push(...rights);
  };
  let i = 0;
  let j = 0;
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) take("same", [left[i++]], [right[j++]]);
    else if (j >= right.length || (i < left.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) {
      take("changed", [left[i++]], []);
    } else take("changed", [], [right[j++]]);
  }
  return runs;
}
