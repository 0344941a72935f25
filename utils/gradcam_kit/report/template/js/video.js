// A video: the score of every frame in order, with a dot at each that was explained.
const videoOf = sample => JSON.stringify([sample.dataset, sample.forgery, sample.video]);
const videoScores = new Map();
for (const {dataset, videos} of data.videos)
  for (const [forgery, video, frames] of videos) videoScores.set(videoOf({dataset, forgery, video}), frames);

function scoreCurve(sample) {
  const frames = videoScores.get(videoOf(sample));
  if (!frames || sample.frames) return [];
  const x = i => 100 * (i + 0.5) / frames.length, y = fake => 100 - 100 * fake;
  const points = frames.map(([, fake], i) => `${x(i).toFixed(2)},${y(fake).toFixed(2)}`).join(" "), scale = {"vector-effect": "non-scaling-stroke"};
  const lines = drawing("svg", {viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img",
    "aria-label": `Fake probability of the ${frames.length} frames of this video, in order`},
    drawing("path", {d: `M0 ${y(data.detection.usual)}H100`, class: "chance", ...scale}), drawing("polyline", {points, class: "line", ...scale}));
  const dots = frames.flatMap(([number, fake], i) => dot(sample, bySample.get(`${sample.dataset}/${number}`),
    `frame ${i + 1} of ${frames.length}: fake ${fake.toFixed(3)}`, `left: ${x(i)}%; top: ${y(fake)}%`));
  const mean = frames.reduce((sum, [, fake]) => sum + fake, 0) / frames.length;
  return [element("section", {},
    element("h3", {textContent: `Video ${readable(sample.video)}: ${frames.length} frames, mean fake probability ${mean.toFixed(3)}`}),
    element("div", {className: "score-curve"},
      element("span", {className: "ends"}, element("span", {textContent: "fake 1"}), element("span", {textContent: "real 0"})),
      element("div", {className: "plot"}, lines, ...dots)))];
}

function dot(sample, explained, title, style) {
  if (!explained) return [];
  const made = element("button", {type: "button", className: "dot", title, ariaLabel: title});
  made.style.cssText = style;
  if (explained === sample) made.setAttribute("aria-current", "true");
  made.addEventListener("click", () => update({sample: key(explained)}));
  return [made];
}
