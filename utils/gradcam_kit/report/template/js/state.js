// The state: the form, the tabs, the page and the address's fragment.
const FIELDS = ["dataset", "forgery", "word", "min", "max", "text", "chosen", "sort", "opacity"];

function readFragment() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const next = {...DEFAULTS};
  for (const name of Object.keys(DEFAULTS)) if (name in given) next[name] = given[name];
  const allowed = {tab: TABS, layer: data.layers, sort: Object.keys(SORTS), view: VIEWS, zoom: ZOOMS, level: LEVELS};
  for (const [name, values] of Object.entries(allowed)) if (!values.includes(next[name])) next[name] = DEFAULTS[name];
  return next;
}

function writeFragment() {
  const changed = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  const fragment = new URLSearchParams(changed).toString();
  // Only the fragment changes; without one the path alone is given, or the old fragment would stay.
  history.replaceState(null, "", fragment ? "#" + fragment : location.pathname + location.search);
}

function fillForm() {
  for (const name of FIELDS) {
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
  const values = Object.fromEntries(FIELDS.map(name => [name, form.elements[name].value]));
  values.outcome = [...form.querySelectorAll("[name=outcome]:checked")].map(box => box.value).join();
  values.layer = data.layers[form.elements.layer.value] || "";
  return values;
}

function readControls() {
  const value = name => controls.querySelector(`[name=${name}]`);
  return {
    view: controls.querySelector("[name=view]:checked").value, layer: value("layer").value || state.layer, opacity: value("opacity").value,
    outline: value("outline").checked ? "yes" : "", full: value("full").checked ? "yes" : "",
  };
}

function showTab() {
  for (const name of TABS) {
    const tab = document.getElementById(`tab-${name}`), chosen = name === state.tab;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(`panel-${name}`).hidden = !chosen;
  }
}

function update(changes) {
  const before = state;
  state = {...state, ...changes};
  const differs = (...names) => names.some(name => before[name] !== state[name]);
  document.documentElement.style.setProperty("--opacity", state.opacity / 100);
  fillForm();
  writeFragment();
  if (differs("tab")) showTab();
  if (differs("level", "threshold")) showDecision();
  if (differs("dataset", "forgery", "word", "outcome", "min", "max", "text", "chosen", "sort")) filterCards();
  else if (differs("layer")) state.word ? filterCards() : changeLayer();
  if (differs("sample")) showLarge();
  else if (large.open && differs("layer", "view", "outline", "full", "zoom", "opacity")) {
    showStage();
    if (differs("layer", "view")) showStrips();
  }
}

function listenToTabs() {
  for (const [i, name] of TABS.entries()) {
    const tab = document.getElementById(`tab-${name}`);
    tab.addEventListener("click", () => update({tab: name}));
    tab.addEventListener("keydown", event => {
      const to = {ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: -1}[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = TABS.at(to % TABS.length);
      update({tab: next});
      document.getElementById(`tab-${next}`).focus();
    });
  }
}

function listenToLarge() {
  const press = (id, act) => document.getElementById(id).addEventListener("click", act);
  press("previous", () => step(-1));
  press("next", () => step(1));
  press("close", () => large.close());
  press("in", () => zoom(1));
  press("out", () => zoom(-1));
  press("save", saveView);
  press("print", () => print());
  controls.addEventListener("input", () => update(readControls()));
  document.querySelector("#time [name=frame]").addEventListener("input", event => showFrame(+event.target.value));
  press("play", play);
  press("all-frames", () => { stopPlaying(); showFrame(-1); });
  large.addEventListener("click", event => { if (event.target === large) large.close(); });
  large.addEventListener("close", () => {
    const opened = cards.querySelector(`[data-key="${CSS.escape(state.sample)}"]`);
    stopPlaying();
    update({sample: "", zoom: "1"});
    if (opened) opened.focus();
  });
  large.addEventListener("keydown", event => {
    // Arrows belong to a slider, a list or the zoomed image while it has the focus.
    const busy = event.target.matches("input, select") || (event.target === stage && state.zoom !== "1");
    const act = {ArrowRight: () => step(1), ArrowLeft: () => step(-1)}[event.key];
    if (act && !busy) act();
    else if (event.key === "+") zoom(1);
    else if (event.key === "-") zoom(-1);
  });
}

// A filter with one answer is none.
function offerWhatIsThere() {
  const offers = (name, count) => { form.elements[name].parentElement.hidden = count < 2; };
  for (const name of ["dataset", "forgery"]) {
    const values = new Set(data.samples.map(sample => sample[name]));
    for (const value of values) form.elements[name].append(element("option", {value, textContent: readable(value)}));
    offers(name, values.size);
  }
  const words = new Set(data.samples.flatMap(sample => sample.maps.map(map => map[4])).filter(Boolean));
  for (const option of [...form.elements.word.options]) if (option.value && !words.has(option.value)) option.remove();
  offers("word", words.size);
  const outcomes = new Set(data.samples.map(sample => sample.outcome));
  for (const box of form.querySelectorAll("[name=outcome]")) box.parentElement.hidden = !outcomes.has(box.value);
  document.getElementById("outcomes").hidden = outcomes.size < 2;
  if (!outcomes.has("TP")) form.elements.sort.querySelector("[value=found]").remove();
  form.elements.layer.max = Math.max(0, data.layers.length - 1);
  offers("layer", data.layers.length);
}

function start() {
  offerWhatIsThere();
  document.getElementById("choose").open = innerWidth > 800; // on a phone the samples come first

  form.addEventListener("input", () => update(readForm()));
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", event => { event.preventDefault(); update({...DEFAULTS}); });
  listenToTabs();
  listenToHelp();
  listenToChosen();
  listenToMetrics();
  listenToLarge();
  window.addEventListener("hashchange", () => update(readFragment()));
  new IntersectionObserver(entries => { if (entries.some(entry => entry.isIntersecting)) appendCards(); }, {rootMargin: "800px"})
    .observe(document.getElementById("more"));

  const asked = readFragment();
  state = {...asked, sample: "", tab: "samples"};
  showChosen();
  filterCards();
  showDecision();
  update(asked);
}

start();
