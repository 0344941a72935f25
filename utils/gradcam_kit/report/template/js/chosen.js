// Samples that somebody ticks and tags. They are kept in this browser, and leave it as a CSV that commands read.
const KEPT = `heatmaps:${location.pathname}`, TICKED = "ticked";
const tags = new Map(); // key of a chosen sample → its tags, of which there may be none

// A browser may refuse to keep anything: then they last as long as the page.
function stored(act) {
  try { return act(localStorage); } catch { return null; }
}

for (const [name, words] of Object.entries(JSON.parse(stored(kept => kept.getItem(KEPT)) || "{}")))
  if (bySample.has(name)) tags.set(name, words);

function keep(sample, words) {
  if (words) tags.set(key(sample), words);
  else tags.delete(key(sample));
  stored(kept => kept.setItem(KEPT, JSON.stringify(Object.fromEntries(tags))));
  showChosen();
}

const isChosen = (sample, wanted) => tags.has(key(sample)) && (wanted === TICKED || tags.get(key(sample)).includes(wanted));

function tick(sample) {
  const box = element("input", {type: "checkbox", checked: tags.has(key(sample)), ariaLabel: `choose sample ${sample.number}`});
  box.dataset.ticks = key(sample);
  box.addEventListener("change", () => keep(sample, box.checked ? [] : null));
  return element("label", {className: "tick-card", title: "choose this sample"}, box);
}

function showChosen() {
  for (const box of document.querySelectorAll("[data-ticks]")) box.checked = tags.has(box.dataset.ticks);
  const words = [...new Set([...tags.values()].flat())].sort(), option = (value, textContent) => element("option", {value, textContent});
  form.elements.chosen.replaceChildren(option("", "all"), option(TICKED, `chosen (${tags.size})`), ...words.map(word => option(word, `tag: ${word}`)));
  form.elements.chosen.value = state.chosen;
  form.elements.chosen.parentElement.hidden = !tags.size && !state.chosen;
  const save = document.getElementById("export");
  save.textContent = `Save ${tags.size} as CSV`;
  save.hidden = document.getElementById("forget").hidden = !tags.size;
  if (openSample()) {
    const of = tags.get(state.sample), field = large.querySelector("[name=tags]");
    if (document.activeElement !== field) field.value = (of || []).join(", ");
    large.querySelector("[name=choose]").checked = !!of;
  }
}

// As the library writes its tables: what a spreadsheet would run as a formula has an apostrophe before it.
function cell(value) {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function chosenTable() {
  const chosen = data.samples.filter(sample => tags.has(key(sample)));
  const rows = chosen.map(one => [one.number, one.path, one.dataset, one.forgery, one.video, one.label, one.fake, tags.get(key(one)).join(" ")]);
  return [["index", "path", "dataset", "forgery", "video", "label", "prob_fake", "tags"], ...rows].map(row => row.map(cell).join(",") + "\n").join("");
}

function listenToChosen() {
  const field = name => large.querySelector(`[name=${name}]`);
  document.getElementById("export").addEventListener("click", () =>
    element("a", {href: URL.createObjectURL(new Blob([chosenTable()], {type: "text/csv"})), download: "chosen.csv"}).click());
  document.getElementById("forget").addEventListener("click", () => {
    tags.clear();
    stored(kept => kept.removeItem(KEPT));
    showChosen();
    update({chosen: ""});
  });
  field("choose").addEventListener("change", event => keep(openSample(), event.target.checked ? [] : null));
  field("tags").addEventListener("input", event => {
    const words = event.target.value.split(/[,;\s]+/).filter(Boolean);
    keep(openSample(), words.length || tags.has(state.sample) ? words : null);
  });
}
