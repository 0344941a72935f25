// "Save this view as PNG". A page opened from the file system may show the images beside it but not read their pixels;
// they are therefore kept once more as text, in scripts that are loaded only for this.
const pixels = new Map(); // sample → {image, maps: [[evidence, signed] per map]}, as data URIs
window.keepPixels = kept => { for (const [name, value] of Object.entries(kept)) pixels.set(name, value); };

function loadPixels(sample) {
  if (pixels.has(key(sample))) return Promise.resolve();
  return new Promise((done, failed) => {
    const script = element("script", {src: url(sample.dataset, "page_data", `${sample.pixels}.js`)});
    script.addEventListener("load", done);
    script.addEventListener("error", failed);
    document.head.append(script);
  });
}

function decoded(uri) {
  const image = element("img", {src: uri});
  return image.decode().then(() => image);
}

// The numbers of the SVG filters that the page itself draws with.
const table = (filter, channel) => document.querySelector(`#${filter} feFunc${channel}`).getAttribute("tableValues").split(" ").map(Number);

function colourOf(view, word) {
  if (word === "artefact" && view !== "signed") return grey => [grey, grey, grey, grey / 255];
  const [red, green, blue] = ["R", "G", "B"].map(channel => table(view === "signed" ? "signed" : "colormap", channel));
  if (view === "signed") return grey => [red, green, blue].map(values => 255 * values[grey < 128 ? 0 : 1]).concat(Math.abs(2 * grey / 255 - 1));
  return grey => [red[grey], green[grey], blue[grey]].map(value => 255 * value).concat(grey / 255);
}

function blend(context, map, view, word, opacity) {
  const {width, height} = context.canvas;
  const small = element("canvas", {width, height}).getContext("2d", {willReadFrequently: true});
  small.imageSmoothingQuality = "high";
  small.drawImage(map, 0, 0, width, height);
  const greys = small.getImageData(0, 0, width, height).data, all = context.getImageData(0, 0, width, height), colour = colourOf(view, word);
  for (let i = 0; i < greys.length; i += 4) {
    const [red, green, blue, heat] = colour(greys[i]), share = heat * opacity;
    [red, green, blue].forEach((value, c) => { all.data[i + c] += (value - all.data[i + c]) * share; });
  }
  context.putImageData(all, 0, 0);
}

const SAVED_WIDTH = 896, LINE = 26;

async function viewAsCanvas(sample) {
  const kept = pixels.get(key(sample)), image = await decoded(kept.image);
  const width = SAVED_WIDTH, height = Math.round(width * image.naturalHeight / image.naturalWidth);
  const context = element("canvas", {width, height}).getContext("2d", {willReadFrequently: true});
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  const place = sample.maps.findIndex(([index]) => data.layers[index] === state.layer);
  if (place >= 0 && mapsOver(sample, state.layer, state.view).length)
    blend(context, await decoded(kept.maps[place][state.view === "signed" ? 1 : 0]), state.view, sample.maps[place][4], state.opacity / 100);
  if (state.outline && sample.outline) {
    context.setTransform(width / 100, 0, 0, height / 100, 0, 0);
    for (const [colour, line] of [["#000", 0.5], ["#fff", 0.22]]) Object.assign(context, {strokeStyle: colour, lineWidth: line}).stroke(new Path2D(sample.outline));
  }
  return withCaption(sample, context.canvas);
}

// For others, too: what the view shows and of what, not where the file lies here.
function withCaption(sample, canvas) {
  const lines = [
    `${sample.dataset}, sample ${sample.number}: label ${CLASSES[sample.label]}, predicted ${CLASSES[sample.predicted]}, P(fake) = ${sample.fake.toFixed(4)}`,
    `${readable(sample.forgery)}, video ${readable(sample.video)}, ${readable(sample.path.split("/").pop())}`,
    state.view === "image" ? "image only" : `${loud(sample.evidence)}; ${state.layer}; ${data.run.method}, ${data.run.site}, ${data.run.backward}`,
  ];
  const bar = state.view === "image" ? 0 : 1;
  const context = element("canvas", {width: canvas.width, height: canvas.height + LINE * (lines.length + bar + 0.5)}).getContext("2d");
  Object.assign(context, {fillStyle: "#fff"}).fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.drawImage(canvas, 0, 0);
  Object.assign(context, {fillStyle: "#1b1c1e", font: "16px system-ui, sans-serif"});
  lines.forEach((line, i) => context.fillText(line, 8, canvas.height + LINE * (i + 0.9), canvas.width - 16));
  if (bar) drawBar(context, sample, canvas.height + LINE * (lines.length + 0.35));
  return context.canvas;
}

const BAR = 256, PAPER = 141; // pixels wide; grey behind it

function drawBar(context, sample, top) {
  const signed = state.view === "signed", colour = colourOf(state.view, (mapOf(sample, state.layer) || [])[4]);
  const ends = signed ? ["against", "for"] : ["0", "1"], what = signed ? "the explained class" : "relative intensity, 1: this map's maximum";
  const left = 8 + context.measureText(ends[0]).width + 8;
  for (let grey = 0; grey < BAR; grey++) {
    const [red, green, blue, heat] = colour(grey), mixed = [red, green, blue].map(value => PAPER + (value - PAPER) * heat);
    Object.assign(context, {fillStyle: `rgb(${mixed.join(" ")})`}).fillRect(left + grey, top, 1, 16);
  }
  context.fillStyle = "#1b1c1e";
  context.fillText(ends[0], 8, top + 14);
  context.fillText(`${ends[1]}    ${what}`, left + BAR + 8, top + 14);
}

async function saveView() {
  const sample = openSample(), told = document.getElementById("told");
  try {
    await loadPixels(sample);
    const canvas = await viewAsCanvas(sample);
    const name = `${sample.dataset}_sample${sample.number}_${state.layer}_${state.view}.png`;
    element("a", {href: canvas.toDataURL("image/png"), download: name}).click();
    told.textContent = `Saved as ${name}.`;
  } catch (problem) {
    told.textContent = "Not saved: the folder page_data next to the samples is missing; python -m utils.report restores it.";
  }
}
