// Images of a sample: the original, a map over it, the outline of what was forged.

// The original is the first panel of the comparison picture: the image is scaled and moved until only it shows.
function original(sample) {
  if (!sample.comparison) return keptImage(sample, {className: "whole-image"}, kept => kept.image);
  const [boxLeft, boxTop, boxWidth, boxHeight, ofWidth, ofHeight] = sample.box;
  // Half a pixel off each side, or the white around the panel would shine through where pixels are not whole.
  const left = boxLeft + 0.5, top = boxTop + 0.5, width = boxWidth - 1, height = boxHeight - 1;
  const image = element("img", {className: "original", src: url(...sample.folder, sample.comparison), alt: "", loading: "lazy", decoding: "async"});
  // With its height known it takes up its place before it is loaded, so that loading starts when it is scrolled to.
  Object.assign(image.style, {aspectRatio: `${ofWidth} / ${ofHeight}`, width: `${100 * ofWidth / width}%`, left: `${-100 * left / width}%`, top: `${-100 * top / height}%`});
  return image;
}

// Of a run without files of images they are only kept as text, and come a hundred samples at a time.
function keptImage(sample, attributes, uriOf) {
  const image = element("img", {alt: "", decoding: "async", ...attributes});
  loadPixels(sample).then(() => { image.src = uriOf(pixels.get(key(sample))); }).catch(() => image.dispatchEvent(new Event("error")));
  return image;
}

function picture(sample, ...images) {
  const box = element("span", {className: "picture"}, ...images);
  box.style.aspectRatio = `${sample.box[2]} / ${sample.box[3]}`;
  return box;
}

const mapOf = (sample, layer) => sample.maps.find(([index]) => data.layers[index] === layer);

const mapUrl = (sample, layer, signed) => url(...sample.folder, "heatmaps", `${layer}${signed ? "_signed" : ""}.png`);

// `view`: evidence for the class that is explained, or signed: red for it, blue against. What its check calls an
// artefact is no evidence and gets no colour.
function mapImage(sample, layer, view = "evidence") {
  const signed = view === "signed", word = mapOf(sample, layer)[4];
  const className = signed ? "signed" : word === "artefact" ? "map artefact" : "map";
  const place = sample.maps.findIndex(([index]) => data.layers[index] === layer);
  if (!sample.comparison) return keptImage(sample, {className}, kept => kept.maps[place][signed ? 1 : 0]);
  return element("img", {className, src: mapUrl(sample, layer, signed), alt: "", loading: "lazy"});
}

// An empty map has no evidence to show, but may hold evidence against.
function mapsOver(sample, layer, view) {
  const map = mapOf(sample, layer);
  return map && view !== "image" && (view === "signed" || !map[2]) ? [mapImage(sample, layer, view)] : [];
}

const overlay = (sample, layer) => picture(sample, original(sample), ...mapsOver(sample, layer, "evidence"));

function outlineOf(sample) {
  const path = () => drawing("path", {d: sample.outline, "vector-effect": "non-scaling-stroke"});
  const lines = drawing("svg", {viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true"}, path(), path());
  lines.classList.add("outline");
  return lines;
}

// A signed map without evidence for the target may still hold evidence against it.
const emptiness = ([, , , drawnEmpty]) => drawnEmpty ? "empty map" : "only evidence against";

const lost = reason => element("span", {className: "lost", textContent: `No images: ${reason}`});
