"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filters");
const cards = document.getElementById("cards");
const large = document.getElementById("large");
const controls = document.getElementById("controls");
const OUTCOMES = ["TP", "FP", "TN", "FN"];
const CLASSES = ["real", "fake"];
const TABS = ["samples", "metrics", "faithfulness", "patterns", "files"];
const VIEWS = ["evidence", "signed", "image"];

// What a view of the page is; whatever differs from this stands in the address.
const DEFAULTS = {
  tab: "samples", dataset: "", forgery: "", outcome: OUTCOMES.join(), word: "", min: "0.5", max: "1", text: "", chosen: "", sort: data.order,
  layer: data.layers[0] || "", opacity: "80", sample: "", level: "frames", threshold: String(data.detection.usual), view: "evidence", outline: "", full: "", zoom: "1",
};
let state = {...DEFAULTS};
let shown = []; // the samples that pass the filters, sorted

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made[name] = value;
  made.append(...children);
  return made;
}

function drawing(tag, attributes, ...children) {
  const made = document.createElementNS(document.querySelector("svg").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Names may hold bytes that are no UTF-8; they arrive as lone surrogates U+DC80 to U+DCFF.
function encodePart(text) {
  return text.split(/([\u{dc80}-\u{dcff}])/u)
    .map((piece, i) => i % 2 ? "%" + (piece.charCodeAt(0) - 0xdc00).toString(16) : encodeURIComponent(piece)).join("");
}
const url = (...parts) => parts.map(encodePart).join("/");
const fileUrl = path => "file://" + path.split("/").map(encodePart).join("/");
const key = sample => `${sample.dataset}/${sample.number}`;
const readable = text => text.replace(/[\p{Cc}\p{Cs}]/gu, c => "\\x" + (c.charCodeAt(0) & 0xff).toString(16).padStart(2, "0"));
const bySample = new Map(data.samples.map(sample => [key(sample), sample]));
