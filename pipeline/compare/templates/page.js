"use strict";
// A key does what its button or link does; one that is held down does it once.
addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input")) return;
  const key = event.key.length === 1 ? event.key.toUpperCase() : event.key;
  const chosen = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (chosen) {
    event.preventDefault();
    chosen.click();
  }
});
// A second click before the next page is there sends nothing.
for (const form of document.querySelectorAll("form[method=post]")) {
  let sent = false;
  form.addEventListener("submit", (event) => {
    if (sent) event.preventDefault();
    sent = true;
  });
  addEventListener("pageshow", () => { sent = false; }); // come back to, from the browser's memory
}
