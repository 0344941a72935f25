// A sample that is a clip: the curve of what each frame adds, and one frame at a time in the large view.
const SECONDS_A_FRAME = 0.25;
const EVIDENCE = "Evidence in each frame", COST = "How far the score drops if a frame is replaced";
let frame = -1; // the one that is shown large; -1: all
let playing = 0;

const timeOf = (sample, layer) => (mapOf(sample, layer) || [])[6] || [];

// A bar for each frame over a line at zero: red for the explained class, blue against it.
function timeCurve(sample, time, says, chosen = -1) {
  const high = Math.max(0, ...time), low = Math.min(0, ...time), span = high - low || 1;
  const zero = 100 * high / span, width = 100 / (time.length || 1);
  const hottest = time.indexOf(Math.max(...time));
  const bars = time.map((value, i) => drawing("rect", {x: (i + 0.12) * width, width: 0.76 * width, class: value > 0 ? "for" : "against",
    y: Math.min(zero, zero - 100 * value / span), height: Math.abs(100 * value / span)}));
  const marks = chosen < 0 ? [] : [drawing("rect", {x: chosen * width, width, y: 0, height: 100, class: "chosen"})];
  const lines = drawing("svg", {viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img",
    "aria-label": `${says}: ${time.length} frames, the most at frame ${sample.frames[hottest]}`},
    ...marks, ...bars, drawing("path", {d: `M0 ${zero}H100`, "vector-effect": "non-scaling-stroke"}));
  lines.classList.add("curve");
  return lines;
}

// What each frame adds, and what its replacement costs where that was measured.
function timeCurves(sample) {
  const evidence = timeCurve(sample, timeOf(sample, state.layer), EVIDENCE, frame);
  if (!sample.cost) return [evidence];
  const named = (text, curve) => [element("p", {className: "quiet", textContent: text}), curve];
  return [...named(EVIDENCE, evidence), ...named(COST, timeCurve(sample, sample.cost, COST, frame))];
}

// The mosaic of all frames, scaled and moved until one frame fills the box.
function oneFrame(sample, whole, place) {
  const [rows, columns] = sample.mosaic, box = element("span", {className: "picture"}, whole);
  box.style.aspectRatio = `${sample.box[2] / columns} / ${sample.box[3] / rows}`;
  Object.assign(whole.style, {position: "absolute", width: `${100 * columns}%`, left: `${-100 * (place % columns)}%`, top: `${-100 * Math.floor(place / columns)}%`});
  return box;
}

function showTime(sample) {
  const panel = document.getElementById("time"), clip = !!sample.frames && !sample.lost;
  panel.hidden = !clip;
  if (!clip) return stopPlaying();
  const slider = panel.querySelector("[name=frame]");
  slider.max = sample.frames.length - 1;
  slider.value = Math.max(0, frame);
  document.getElementById("curve").replaceChildren(...timeCurves(sample));
  document.getElementById("frame-number").textContent = frame < 0 ? "all frames" : `frame ${sample.frames[frame]}`;
  document.getElementById("play").textContent = playing ? "Stop" : "Play";
}

function showFrame(place) {
  frame = place;
  showStage();
}

function stopPlaying() {
  clearInterval(playing);
  playing = 0;
}

function play() {
  if (playing) stopPlaying();
  else playing = setInterval(() => openSample()?.frames ? showFrame((frame + 1) % openSample().frames.length) : stopPlaying(), 1000 * SECONDS_A_FRAME);
  showStage();
}
