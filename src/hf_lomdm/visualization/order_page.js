"use strict";
const $ = id => document.getElementById(id);
const samples = [...document.querySelectorAll(".sample")];
const SHORT = 16, LONG = 100;  // steps of runs that play by themselves at another speed than normal
let parts, tokens, steps, step, timer = null;

function show(next) {
  step = Math.max(0, Math.min(steps, next));
  for (const part of parts) {
    const at = Number(part.dataset.step), masked = at >= step;
    part.classList.toggle("masked", masked);
    part.classList.toggle("now", at === step - 1 && step < steps);
    masked ? part.setAttribute("aria-hidden", "true") : part.removeAttribute("aria-hidden");
  }
  for (const [all, rates] of tokens) {
    // 0 to 9 and a to z: the height of the bar in a masked token
    const now = rates[step] || "";
    all.forEach((one, i) => one.style.setProperty("--rate", parseInt(now[i] || "0", 36) / 35));
  }
  $("step").value = step;
  const count = tokens.reduce((sum, [all]) => sum + all.length, 0);
  const revealed = tokens.reduce((sum, [all]) => sum + all.filter(one => one.dataset.step < step).length, 0);
  const said = `step ${step} of ${steps}: ${revealed} of ${count} tokens revealed`;
  $("step").setAttribute("aria-valuetext", said);
  $("status").textContent = said;
}

function pause() {
  clearInterval(timer);
  timer = null;
  $("play").textContent = "Play";
  $("status").setAttribute("aria-live", "polite");
}

function play() {
  if (timer !== null) return pause();
  if (step === steps) show(0);
  $("play").textContent = "Pause";
  $("status").setAttribute("aria-live", "off");  // a screen reader would speak every step
  timer = setInterval(() => { show(step + 1); if (step === steps) pause(); }, Number($("speed").value));
}

function choose(number) {
  pause();
  samples.forEach((one, index) => { one.hidden = index !== number; });
  parts = [...samples[number].querySelectorAll("[data-step]")];
  tokens = [...samples[number].querySelectorAll("[data-rates]")].map(
    panel => [[...panel.querySelectorAll("[data-step]")], panel.dataset.rates.split(",")]);
  steps = Math.max(0, ...parts.map(part => Number(part.dataset.step) + 1));
  $("bars").hidden = tokens.every(([, rates]) => rates.join("") === "");
  $("step").max = steps;
  $("sample").value = number;
  show(steps);
}

const moves = {
  first: () => show(0), back: () => show(step - 1), forward: () => show(step + 1), last: () => show(steps),
};
for (const [id, move] of Object.entries(moves)) $(id).onclick = () => { pause(); move(); };
$("play").onclick = play;
$("step").oninput = () => { pause(); show(Number($("step").value)); };
$("speed").onchange = () => { if (timer !== null) { pause(); play(); } };
$("sample").onchange = () => choose(Number($("sample").value));
$("theme").onchange = () => { document.documentElement.style.colorScheme = $("theme").value; };
const keys = { ArrowLeft: "back", ArrowRight: "forward", Home: "first", End: "last", " ": "play" };
document.addEventListener("keydown", event => {
  const busy = event.target.closest("input, select") || (event.key === " " && event.target.closest("button"));
  if (busy || event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
  event.preventDefault();
  $(keys[event.key]).click();
});
choose(0);
if ("plays" in document.body.dataset) {  // within another page, which makes room for it
  const tell = () => parent.postMessage({orderHeight: document.documentElement.offsetHeight}, "*");
  new ResizeObserver(tell).observe(document.body);
  $("speed").value = steps <= SHORT ? "600" : steps > LONG ? "50" : "200";
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
}
