"use strict";
const $ = id => document.getElementById(id);
const texts = [...document.querySelectorAll(".text")];
const motions = [$("first"), $("back"), $("play"), $("forward"), $("last")];
let text, tokens, steps, step, timer = null;

function show(next) {
  step = Math.max(0, Math.min(steps, next));
  let revealed = 0;
  for (const token of tokens) {
    const at = Number(token.dataset.step), masked = at >= step;
    revealed += !masked;
    token.classList.toggle("masked", masked);
    token.classList.toggle("now", at === step - 1 && step < steps);
    masked ? token.setAttribute("aria-hidden", "true") : token.removeAttribute("aria-hidden");
  }
  $("step").value = step;
  const said = `step ${step} of ${steps}: ${revealed} of ${tokens.length} tokens revealed`;
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
  texts.forEach((one, index) => { one.hidden = index !== number; });
  text = texts[number];
  tokens = [...text.querySelectorAll("[data-step]")];
  steps = Math.max(0, ...tokens.map(token => Number(token.dataset.step) + 1));
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
