// One sample, large: its map over the image, its layers, its neighbours, its facts.
const ZOOMS = ["1", "1.5", "2", "3", "4", "6", "8"];
const stage = document.getElementById("stage");

const byVideo = new Map();
for (const sample of data.samples) {
  const video = videoOf(sample);
  byVideo.set(video, [...(byVideo.get(video) || []), sample]);
}

function openSample() {
  return bySample.get(state.sample);
}

function showLarge() {
  const sample = openSample();
  if (!sample) {
    if (large.open) large.close();
    return;
  }
  const title = document.getElementById("large-title");
  title.textContent = `${sample.dataset}, sample ${sample.number}: ${CLASSES[sample.label]}, predicted ${CLASSES[sample.predicted]}`;
  document.getElementById("metadata").replaceChildren(...factsOf(sample).map(([name, value]) =>
    element("div", {}, element("dt", {textContent: name}), element("dd", {}, value))));
  controls.hidden = !!sample.lost;
  if (frame >= (sample.frames || []).length) frame = -1;
  controls.querySelector("[name=full]").parentElement.hidden = !!sample.frames || data.anonymous;
  controls.querySelector("[name=outline]").parentElement.hidden = !sample.outline;
  const layers = controls.querySelector("[name=layer]");
  layers.replaceChildren(...sample.maps.map(([index]) => element("option", {value: data.layers[index], textContent: data.layers[index]})));
  document.getElementById("told").textContent = "";
  showStage();
  showStrips();
  showChosen();
  const place = shown.indexOf(sample);
  document.getElementById("previous").disabled = place <= 0;
  document.getElementById("next").disabled = place < 0 || place === shown.length - 1;
  if (!large.open) large.showModal();
  title.focus();
}

// The image with what is laid over it. Its place in the scrolled stage stays when only the map changes.
function showStage() {
  const sample = openSample();
  fillControls();
  if (sample.lost) {
    stage.replaceChildren(lost(sample.lost));
    showTime(sample);
    return;
  }
  const layers = [...mapsOver(sample, state.layer, state.view), ...(state.outline && sample.outline ? [outlineOf(sample)] : [])];
  const whole = picture(sample, state.full && !sample.frames && !data.anonymous ? fullImage(sample) : original(sample), ...layers);
  const box = sample.frames && frame >= 0 ? oneFrame(sample, whole, frame) : whole;
  stage.style.aspectRatio = sample.frames ? box.style.aspectRatio || `${sample.box[2]} / ${sample.box[3]}` : "";
  showTime(sample);
  box.style.width = `${100 * state.zoom}%`;
  for (const image of box.querySelectorAll("img:not(.full)"))
    image.addEventListener("error", () => box.isConnected && stage.replaceChildren(lost("they were deleted")), {once: true});
  stage.replaceChildren(box);
  const map = mapOf(sample, state.layer);
  document.getElementById("caption").textContent = !map ? "no map for this layer"
    : `${loud(sample.evidence[0].toUpperCase() + sample.evidence.slice(1))}. ${state.layer}: ${map[2] ? emptiness(map) : `maximum ${map[1].toPrecision(3)}`}.${map[4] ? ` ${map[5]}${map[4] === "artefact" ? "; drawn in grey" : ""}.` : ""}`
      + (state.view === "signed" ? "  Red is evidence for the target, blue against it" : "");
  document.getElementById("scale").textContent = state.view === "signed" ? "against · no evidence · for the target"
    : `0 · share of the maximum ${map ? map[1].toPrecision(3) : ""} · 1`;
}

// The file that the detector's input was made from. Its own proportions show, also where the detector squashes it.
function fullImage(sample) {
  const image = element("img", {className: "full", src: fileUrl(sample.path), alt: ""});
  image.addEventListener("load", () => {
    image.parentElement.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
    document.getElementById("told").textContent = `Original: ${image.naturalWidth} × ${image.naturalHeight} pixels.`;
  });
  image.addEventListener("error", () => {
    document.getElementById("told").textContent = "The original file cannot be opened from here; this is what the detector saw.";
    if (image.isConnected) image.replaceWith(original(sample));
  }, {once: true});
  return image;
}

function fillControls() {
  controls.dataset.view = state.view;
  for (const radio of controls.querySelectorAll("[name=view]")) radio.checked = radio.value === state.view;
  controls.querySelector("[name=layer]").value = state.layer;
  controls.querySelector("[name=opacity]").value = state.opacity;
  controls.querySelector("[name=outline]").checked = !!state.outline;
  controls.querySelector("[name=full]").checked = !!state.full;
  document.getElementById("zoom").textContent = `${Math.round(100 * state.zoom)} %`;
  document.getElementById("out").disabled = state.zoom === ZOOMS[0];
  document.getElementById("in").disabled = state.zoom === ZOOMS[ZOOMS.length - 1];
}

function zoom(by) {
  update({zoom: ZOOMS[Math.min(ZOOMS.length - 1, Math.max(0, ZOOMS.indexOf(state.zoom) + by))]});
}

function factsOf(sample) {
  const number = value => value === null || value === undefined ? "–" : (+value).toPrecision(5);
  const link = (name, href) => element("a", {href, textContent: name});
  const files = sample.lost || !sample.comparison ? [] : [
    link("comparison", url(...sample.folder, sample.comparison)),
    ...sample.maps.map(([index]) => link(data.layers[index], url(...sample.folder, `gradcam_${data.layers[index]}_sample${sample.number}.${sample.comparison.split(".").pop()}`))),
    ...(data.anonymous ? [] : [
      link("metadata", url(...sample.folder, `sample${sample.number}_metadata.txt`)),
      link("JSON", url(...sample.folder, `sample${sample.number}.json`)),
    ]),
    ...(sample.frames ? sample.maps.map(([index]) => link(`${data.layers[index]} over time`, url(...sample.folder, `gradcam_strip_${data.layers[index]}_sample${sample.number}.${sample.comparison.split(".").pop()}`))) : []),
    ...(data.raw ? [link("raw maps", url(...sample.folder, `raw_sample${sample.number}.npz`))] : []),
  ];
  const facts = {
    outcome: sample.outcome, "fake probability": sample.fake.toFixed(4), confidence: sample.confidence.toFixed(4),
    "logits (real, fake)": sample.logits.map(number).join(", "), forgery: readable(sample.forgery), video: readable(sample.video),
    ...(sample.frames ? {frames: sample.frames.join(" ")} : {}), "evidence for": sample.evidence.replace("evidence for ", ""), target: sample.target, method: data.run.method, site: data.run.site, backward: data.run.backward,
    weights: readable(data.run.weights.split("/").pop()), image: data.anonymous ? readable(sample.path) : link(readable(sample.path), fileUrl(sample.path)),
  };
  if (sample.sha256) Object.assign(facts, {"size when this page was written": `${sample.bytes.toLocaleString("en")} bytes`, "SHA-256 at that time": sample.sha256});
  if (files.length) facts.files = element("span", {className: "links"}, ...files);
  return Object.entries(facts);
}

// ------------------------------------------------------------------------------------------ layers and neighbours

function thumbnail(caption, content, chosen, act) {
  const button = element("button", {type: "button", className: "thumbnail"}, content, element("span", {textContent: caption}));
  if (chosen) button.setAttribute("aria-current", "true");
  button.addEventListener("click", act);
  return button;
}

function strip(title, thumbnails) {
  return thumbnails.length ? [element("section", {}, element("h3", {textContent: title}), element("div", {className: "strip"}, ...thumbnails))] : [];
}

function showStrips() {
  const sample = openSample();
  const others = byVideo.get(videoOf(sample)).filter(one => !one.lost);
  const sampleThumbnail = one => thumbnail(`sample ${one.number}, fake ${one.fake.toFixed(3)}`, overlay(one, state.layer), one === sample, () => update({sample: key(one)}));
  document.getElementById("strips").replaceChildren(
    ...strip("Layers", sample.lost ? [] : sample.maps.flatMap(([index]) => ["evidence", "signed"].map(view => {
      const layer = data.layers[index], over = picture(sample, original(sample), ...mapsOver(sample, layer, view));
      return thumbnail(`${layer}${view === "signed" ? ", signed" : ""}`, over, layer === state.layer && view === state.view, () => update({layer, view}));
    }))),
    ...strip("The real image it was made from", sample.real ? realThumbnail(sample, sampleThumbnail) : []),
    ...scoreCurve(sample),
    ...strip("Explained frames of this video", others.length > 1 ? others.map(sampleThumbnail) : []),
  );
}

// Where the real counterpart was explained, it opens; else its file is shown as it is.
function realThumbnail(sample, sampleThumbnail) {
  const explained = data.samples.find(one => one.path === sample.real && !one.lost);
  if (explained) return [sampleThumbnail(explained)];
  if (data.anonymous) return [];
  const image = element("img", {src: fileUrl(sample.real), alt: "", loading: "lazy"});
  const made = element("a", {className: "thumbnail", href: fileUrl(sample.real)}, element("span", {className: "picture whole"}, image),
    element("span", {textContent: readable(sample.real.split("/").slice(-2).join("/"))}));
  image.addEventListener("error", () => image.parentElement.replaceWith(lost("the file cannot be opened")), {once: true});
  return [made];
}

function step(by) {
  const next = shown[shown.findIndex(one => key(one) === state.sample) + by];
  if (next) update({sample: key(next)});
}
