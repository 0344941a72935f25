// What a threshold decides: counts of frames or videos, rates, the point on each ROC curve.
const LEVELS = ["frames", "videos"];
const {thresholds, usual, datasets: counted} = data.detection;
const decision = document.getElementById("decision");

// The last threshold that is not above the one that is asked for.
const placeOf = threshold => Math.max(0, thresholds.findLastIndex(one => one <= threshold));
const share = (part, of) => of ? part / of : NaN;
const shown3 = value => Number.isNaN(value) ? "–" : value.toFixed(3);

function decided({real, fakes}, place) {
  const sum = at => fakes.reduce((total, [, counts]) => total + counts[at], 0);
  const FP = real[place + 1], TN = real[0] - FP, TP = sum(place + 1), FN = sum(0) - TP;
  const TPR = share(TP, TP + FN), FPR = share(FP, FP + TN);
  return {TP, FP, TN, FN, TPR, FPR, precision: share(TP, TP + FP), accuracy: share(TP + TN, TP + TN + FP + FN), balanced: (TPR + 1 - FPR) / 2};
}

function showDecision() {
  const place = placeOf(+state.threshold);
  for (const box of decision.querySelectorAll("[name=level]")) box.checked = box.value === state.level;
  const slider = decision.querySelector("[name=threshold]"), text = String(thresholds[place]);
  slider.value = place;
  slider.setAttribute("aria-valuetext", text);
  decision.querySelector(".value").textContent = text;
  for (const part of document.querySelectorAll("[data-level]")) {
    part.hidden = part.dataset.level !== state.level;
    if (part.hidden) continue;
    const counts = counted[part.dataset.dataset][state.level], rates = decided(counts, place);
    for (const cell of part.querySelectorAll("[data-rate]")) {
      const value = rates[cell.dataset.rate];
      cell.textContent = Number.isInteger(value) && cell.dataset.rate === cell.dataset.rate.toUpperCase() && cell.dataset.rate.length === 2 ? value.toLocaleString("en") : shown3(value);
    }
    for (const cell of part.querySelectorAll("[data-forgery]")) {
      const [, of] = counts.fakes[cell.dataset.forgery] || [];
      cell.textContent = of ? shown3(share(of[place + 1], of[0])) : "";
    }
    for (const point of part.querySelectorAll("circle.here")) {
      point.setAttribute("cx", 100 * rates.FPR);
      point.setAttribute("cy", 100 - 100 * rates.TPR);
    }
  }
  for (const line of document.querySelectorAll("line.here")) for (const end of ["x1", "x2"]) line.setAttribute(end, 100 * thresholds[place]);
}

function listenToMetrics() {
  const slider = decision.querySelector("[name=threshold]");
  slider.max = thresholds.length - 1;
  decision.addEventListener("input", () => update({
    level: decision.querySelector("[name=level]:checked").value, threshold: String(thresholds[slider.value]),
  }));
  document.getElementById("usual").addEventListener("click", () => update({threshold: String(usual)}));
}
