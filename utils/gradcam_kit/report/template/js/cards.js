// The samples as cards: filtered, sorted, made as they are scrolled to.
const CHUNK = 48;

function pair(sample) {
  if (sample.lost) return lost(sample.lost);
  const made = element("span", {className: "pair"}, picture(sample, original(sample)), overlay(sample, state.layer));
  // Pictures may have been deleted after this page was written.
  made.addEventListener("error", () => made.isConnected && made.replaceWith(lost("they were deleted")), {capture: true, once: true});
  return made;
}

function verdict(sample) {
  const right = sample.predicted === sample.label;
  const probability = element("span", {className: "probability", title: "fake probability"}, `fake ${sample.fake.toFixed(3)}`);
  probability.style.setProperty("--fake-share", `${100 * sample.fake}%`);
  return element("span", {className: "verdict"},
    element("span", {className: right ? "right" : "wrong", textContent: `${right ? "✓" : "✗"} ${CLASSES[sample.label]}, predicted ${CLASSES[sample.predicted]}`}),
    probability);
}

// Which class the map speaks for cannot be overlooked: a hot spot on a forged mouth may be what spoke for real.
const loud = evidence => evidence.replace(/fake|real/g, name => name.toUpperCase());

function curveOf(sample) {
  return sample.frames && !sample.lost ? [timeCurve(sample, timeOf(sample, state.layer), EVIDENCE)] : [];
}

function where(sample) {
  const map = mapOf(sample, state.layer), note = map && map[2] ? emptiness(map) : map && map[4];
  return element("span", {className: "where"}, element("span", {textContent: loud(sample.evidence)}),
    ...(note ? [element("span", {className: `word ${map[4]}`, title: map[5], textContent: note})] : []));
}

// One line each: the rest is in the title and in the large view.
function place(sample) {
  const frames = sample.frames ? `frames ${sample.frames[0]} to ${sample.frames.at(-1)}` : readable(sample.path.split("/").pop());
  const textContent = [readable(sample.forgery), readable(sample.video), frames].join(" · ");
  return element("span", {className: "where path", textContent, title: `${sample.outcome}, sample ${sample.number}: ${readable(sample.path)}`});
}

function card(sample) {
  const button = element("button", {type: "button", className: "card"}, pair(sample), ...curveOf(sample), verdict(sample), where(sample), place(sample));
  button.dataset.key = key(sample);
  button.addEventListener("click", () => update({sample: key(sample)}));
  return element("li", {}, button, tick(sample));
}

function appendCards() {
  const from = cards.childElementCount;
  cards.append(...shown.slice(from, from + CHUNK).map(card));
  document.getElementById("more").hidden = cards.childElementCount >= shown.length;
}

const kindOf = sample => sample.outcome[0] === "F" ? "wrong" : sample.outcome;
const surest = (a, b) => b.confidence - a.confidence;
const inTurn = (...kinds) => (a, b) => kinds.indexOf(kindOf(a)) - kinds.indexOf(kindOf(b)) || surest(a, b);

const SORTS = {
  mistakes: inTurn("wrong", "TP", "TN"),
  found: inTurn("TP", "wrong", "TN"),
  number: () => 0, // the order in which they come
  sure: surest,
  unsure: (a, b) => a.confidence - b.confidence,
  fake: (a, b) => b.fake - a.fake,
  path: (a, b) => a.path < b.path ? -1 : a.path > b.path ? 1 : 0,
};

function filterCards() {
  const outcomes = new Set(state.outcome.split(",")), text = state.text.toLowerCase();
  // Half a step of slack: the sliders stand on hundredths, confidences between them.
  const min = state.min - 0.005, max = +state.max + 0.005;
  shown = data.samples.filter(sample =>
    (!state.dataset || sample.dataset === state.dataset) && (!state.forgery || sample.forgery === state.forgery)
    && (!state.word || (mapOf(sample, state.layer) || [])[4] === state.word)
    && outcomes.has(sample.outcome) && sample.confidence >= min && sample.confidence <= max
    && (!state.chosen || isChosen(sample, state.chosen))
    && (!text || sample.path.toLowerCase().includes(text)));
  shown.sort(SORTS[state.sort]);
  cards.replaceChildren();
  appendCards();
  document.getElementById("count").textContent = !data.samples.length ? "This run explained no samples."
    : shown.length ? `${shown.length} of ${data.samples.length} explained samples`
    : `None of the ${data.samples.length} explained samples match; “Reset” shows all of them.`;
}

function changeLayer() {
  for (const button of cards.querySelectorAll(".card")) {
    const sample = bySample.get(button.dataset.key);
    if (!sample.lost) button.querySelector(".pair")?.lastElementChild.replaceWith(overlay(sample, state.layer));
    button.querySelector(".curve")?.replaceWith(...curveOf(sample));
    button.querySelector(".where").replaceWith(where(sample));
  }
}
