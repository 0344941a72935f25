"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filters");
const cards = document.getElementById("cards");
const large = document.getElementById("large");
const CHUNK = 48; // cards made at a time, as they are scrolled to
const OUTCOMES = ["TP", "FP", "TN", "FN"];
const CLASSES = ["real", "fake"];
const DEFAULTS = {dataset: "", forgery: "", outcome: OUTCOMES.join(), word: "", min: "0.5", max: "1", text: "", sort: "number", layer: data.layers[0] || "", opacity: "50", sample: ""};

let state = {...DEFAULTS};
let shown = []; // the samples that pass the filters, sorted

// ---------------------------------------------------------------------------------------------- small things

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made[name] = value;
  made.append(...children);
  return made;
}

// Names may hold bytes that are no UTF-8; they arrive as lone surrogates U+DC80 to U+DCFF.
function encodePart(text) {
  return text.split(/([\u{dc80}-\u{dcff}])/u)
    .map((piece, i) => i % 2 ? "%" + (piece.charCodeAt(0) - 0xdc00).toString(16) : encodeURIComponent(piece)).join("");
}
const url = (...parts) => parts.map(encodePart).join("/");
const key = sample => `${sample.dataset}/${sample.number}`;
const readable = text => text.replace(/[\p{Cc}\p{Cs}]/gu, c => "\\x" + (c.charCodeAt(0) & 0xff).toString(16).padStart(2, "0"));

// The original is the first panel of the comparison picture: the image is scaled and moved until only it shows.
function original(sample) {
  const [boxLeft, boxTop, boxWidth, boxHeight, ofWidth, ofHeight] = sample.box;
  // Half a pixel off each side, or the white around the panel would shine through where pixels are not whole.
  const left = boxLeft + 0.5, top = boxTop + 0.5, width = boxWidth - 1, height = boxHeight - 1;
  const image = element("img", {src: url(...sample.folder, sample.comparison), alt: "", loading: "lazy", decoding: "async"});
  // With its height known it takes up its place before it is loaded, so that loading starts when it is scrolled to.
  Object.assign(image.style, {aspectRatio: `${ofWidth} / ${ofHeight}`, width: `${100 * ofWidth / width}%`, left: `${-100 * left / width}%`, top: `${-100 * top / height}%`});
  return image;
}

function picture(sample, ...images) {
  const box = element("span", {className: "picture"}, ...images);
  box.style.aspectRatio = `${sample.box[2]} / ${sample.box[3]}`;
  return box;
}

const mapOf = (sample, layer) => sample.maps.find(([index]) => data.layers[index] === layer);

function mapImage(sample, layer) {
  return element("img", {className: "map", src: url(...sample.folder, "heatmaps", `${layer}.png`), alt: "", loading: "lazy"});
}

function overlay(sample, layer) {
  const map = mapOf(sample, layer);
  return picture(sample, original(sample), ...(map && !map[2] ? [mapImage(sample, layer)] : []));
}

// A signed map without evidence for the target may still hold evidence against it, which the signed panel shows.
const emptiness = ([, , , drawnEmpty]) => drawnEmpty ? "empty map" : "evidence against only";

const lost = reason => element("span", {className: "lost", textContent: `No images: ${reason}`});

// ------------------------------------------------------------------------------------------------------ cards

function pair(sample) {
  if (sample.lost) return lost(sample.lost);
  const made = element("span", {className: "pair"}, picture(sample, original(sample)), overlay(sample, state.layer));
  // Pictures may have been deleted after this page was written.
  made.addEventListener("error", () => made.isConnected && made.replaceWith(lost("they were deleted")), {capture: true, once: true});
  return made;
}

function verdict(sample) {
  const right = sample.predicted === sample.label;
  return element("span", {className: `verdict ${right ? "right" : "wrong"}`,
    textContent: `${right ? "✓" : "✗"} ${CLASSES[sample.label]}, predicted ${CLASSES[sample.predicted]} ${sample.confidence.toFixed(3)} (${sample.outcome})`});
}

function card(sample) {
  const map = mapOf(sample, state.layer);
  const button = element("button", {type: "button", className: "card"}, pair(sample), verdict(sample),
    element("span", {className: "where", textContent: `${readable(sample.forgery)} · video ${readable(sample.video)} · sample ${sample.number}${map && map[2] ? ` · ${emptiness(map)}` : ""}${map && map[4] ? ` · ${map[4]}` : ""}`}),
    element("span", {className: "where", textContent: readable(sample.path.split("/").slice(-2).join("/"))}));
  button.dataset.key = key(sample);
  button.addEventListener("click", () => update({sample: key(sample)}));
  return element("li", {}, button);
}

function appendCards() {
  const from = cards.childElementCount;
  cards.append(...shown.slice(from, from + CHUNK).map(card));
  document.getElementById("more").hidden = cards.childElementCount >= shown.length;
}

const SORTS = {
  number: () => 0, // the order in which they come
  sure: (a, b) => b.confidence - a.confidence,
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
    && (!text || sample.path.toLowerCase().includes(text)));
  shown.sort(SORTS[state.sort]);
  cards.replaceChildren();
  appendCards();
  document.getElementById("count").textContent = data.samples.length
    ? `${shown.length} of ${data.samples.length} explained samples` : "This run explained no samples.";
}

// ------------------------------------------------------------------------------------------------- large view

function panel(caption, content) {
  return element("figure", {}, content, element("figcaption", {textContent: caption}));
}

function layerPanels(sample) {
  return sample.maps.flatMap(map => {
    const [index, maximum, empty] = map, layer = data.layers[index];
    const signed = element("img", {className: "signed", src: url(...sample.folder, "heatmaps", `${layer}_signed.png`), alt: `Signed map of ${layer}`});
    return [
      panel(empty ? `${layer}: ${emptiness(map)}` : `${layer}, maximum ${maximum.toPrecision(3)}`, overlay(sample, layer)),
      panel(`${layer}, signed: red for, blue against`, picture(sample, signed)),
    ];
  });
}

function showLarge() {
  const sample = data.samples.find(one => key(one) === state.sample);
  if (!sample) {
    if (large.open) large.close();
    return;
  }
  const title = document.getElementById("large-title");
  title.textContent = `${sample.dataset}, sample ${sample.number}: ${CLASSES[sample.label]}, predicted ${CLASSES[sample.predicted]}`;
  const panels = document.getElementById("panels");
  panels.replaceChildren(...(sample.lost ? [lost(sample.lost)] : [panel("original", picture(sample, original(sample))), ...layerPanels(sample)]));
  for (const image of panels.querySelectorAll("img"))
    image.addEventListener("error", () => image.isConnected && panels.replaceChildren(lost("they were deleted")), {once: true});
  const number = value => value === null || value === undefined ? "–" : (+value).toPrecision(5);
  const facts = {
    outcome: sample.outcome, confidence: sample.confidence.toFixed(4), "fake probability": sample.fake.toFixed(4),
    "logits (real, fake)": sample.logits.map(number).join(", "), forgery: readable(sample.forgery), video: readable(sample.video),
    target: sample.target, method: data.run.method, site: data.run.site, backward: data.run.backward,
    weights: readable(data.run.weights),
  };
  const link = element("a", {href: "file://" + sample.path.split("/").map(encodePart).join("/"), textContent: readable(sample.path)});
  document.getElementById("metadata").replaceChildren(
    ...[...Object.entries(facts), ["image", link]].map(([name, value]) =>
      element("div", {}, element("dt", {textContent: name}), element("dd", {}, value))));
  const place = shown.indexOf(sample);
  document.getElementById("previous").disabled = place <= 0;
  document.getElementById("next").disabled = place < 0 || place === shown.length - 1;
  if (!large.open) large.showModal();
  title.focus();
}

function step(by) {
  const next = shown[shown.findIndex(one => key(one) === state.sample) + by];
  if (next) update({sample: key(next)});
}

// ------------------------------------------------------------------------ state: form, page and URL fragment

function readFragment() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const next = {...DEFAULTS};
  for (const name of Object.keys(DEFAULTS)) if (name in given) next[name] = given[name];
  if (!data.layers.includes(next.layer)) next.layer = DEFAULTS.layer;
  if (!(next.sort in SORTS)) next.sort = DEFAULTS.sort;
  return next;
}

function writeFragment() {
  const changed = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  const fragment = new URLSearchParams(changed).toString();
  // Only the fragment changes; without one the path alone is given, or the old fragment would stay.
  history.replaceState(null, "", fragment ? "#" + fragment : location.pathname + location.search);
}

function fillForm() {
  for (const name of ["dataset", "forgery", "word", "min", "max", "text", "sort", "opacity"]) {
    const field = form.elements[name];
    if (field.value !== state[name]) field.value = state[name];
  }
  for (const box of form.querySelectorAll("[name=outcome]")) box.checked = state.outcome.split(",").includes(box.value);
  form.elements.layer.value = Math.max(0, data.layers.indexOf(state.layer));
  const tell = (name, text) => {
    form.elements[name].setAttribute("aria-valuetext", text);
    form.elements[name].parentElement.querySelector(".value").textContent = text;
  };
  tell("layer", state.layer);
  tell("opacity", `${state.opacity} %`);
  tell("min", (+state.min).toFixed(2));
  tell("max", (+state.max).toFixed(2));
}

function readForm() {
  const values = Object.fromEntries(["dataset", "forgery", "word", "min", "max", "text", "sort", "opacity"].map(name => [name, form.elements[name].value]));
  values.outcome = [...form.querySelectorAll("[name=outcome]:checked")].map(box => box.value).join();
  values.layer = data.layers[form.elements.layer.value] || "";
  return values;
}

function changeLayer() {
  for (const button of cards.querySelectorAll(".card")) {
    const sample = bySample.get(button.dataset.key);
    if (!sample.lost) button.querySelector(".pair")?.lastElementChild.replaceWith(overlay(sample, state.layer));
  }
}

function update(changes) {
  const before = state;
  state = {...state, ...changes};
  const differs = (...names) => names.some(name => before[name] !== state[name]);
  document.documentElement.style.setProperty("--opacity", state.opacity / 100);
  fillForm();
  writeFragment();
  if (differs("dataset", "forgery", "word", "outcome", "min", "max", "text", "sort")) filterCards();
  else if (differs("layer")) state.word ? filterCards() : changeLayer();
  if (differs("sample")) showLarge();
}

function start() {
  for (const name of ["dataset", "forgery"])
    for (const value of new Set(data.samples.map(sample => sample[name])))
      form.elements[name].append(element("option", {value, textContent: readable(value)}));
  form.elements.layer.max = Math.max(0, data.layers.length - 1);
  form.elements.layer.disabled = data.layers.length < 2;
  for (const image of document.querySelectorAll("img[data-parts]")) image.src = url(...JSON.parse(image.dataset.parts));

  form.addEventListener("input", () => update(readForm()));
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", event => { event.preventDefault(); update({...DEFAULTS}); });
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => large.close());
  large.addEventListener("click", event => { if (event.target === large) large.close(); });
  large.addEventListener("close", () => {
    const opened = cards.querySelector(`[data-key="${CSS.escape(state.sample)}"]`);
    update({sample: ""});
    if (opened) opened.focus();
  });
  large.addEventListener("keydown", event => {
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
  });
  window.addEventListener("hashchange", () => update(readFragment()));
  new IntersectionObserver(entries => { if (entries.some(entry => entry.isIntersecting)) appendCards(); }, {rootMargin: "800px"})
    .observe(document.getElementById("more"));

  const asked = readFragment();
  state = {...asked, sample: ""};
  filterCards();
  update(asked);
}

const bySample = new Map(data.samples.map(sample => [key(sample), sample]));
start();
