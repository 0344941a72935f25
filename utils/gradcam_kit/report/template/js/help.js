// Keys, and what the verdicts mean: one dialog, one click or one key away.
const help = document.getElementById("help");

function showHelp() {
  if (!help.open) help.showModal();
}

// Letters belong to a field in which somebody writes.
function pressed(event) {
  const writes = event.target.matches("input:not([type=checkbox], [type=radio], [type=range]), select");
  if (writes || event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const tab = TABS[event.key - 1];
  if (event.key === "?") showHelp();
  else if (large.open && event.key === "s") keep(openSample(), tags.has(state.sample) ? null : []);
  else if (large.open && event.key === "v") update({view: VIEWS[(VIEWS.indexOf(state.view) + 1) % VIEWS.length]});
  else if (!large.open && tab) update({tab});
  else if (!large.open && event.key === "/") {
    event.preventDefault();
    update({tab: "samples"});
    form.elements.text.focus();
  }
}

function listenToHelp() {
  for (const button of document.querySelectorAll(".help")) button.addEventListener("click", showHelp);
  document.getElementById("close-help").addEventListener("click", () => help.close());
  help.addEventListener("click", event => { if (event.target === help) help.close(); });
  document.addEventListener("keydown", pressed);
}
