"use strict";
/* Predictions without a kernel: kept in this browser's own storage, in the form of my_predictions.json, and sent nowhere.
   Of the reader's diagram only counts and quotients are computed here; a test holds them to mbls.course.answers. */
(() => {
  const KEY = "mbls-predictions";
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(KEY) || "{}");
  } catch {
    kept = {};
  }
  const questions = new Map();

  function keep(id, answer) {
    kept[id] = answer;
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
    } catch {
      // A browser that keeps nothing: the answers last as long as the page.
    }
    document.querySelectorAll(".mbls-mine").forEach(drawMine);
  }

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const said = (question, value) => (question.options.length ? value : `${value} ${question.unit}`.trim());
  const isRight = (question, answer, truth) =>
    question.options.length ? answer === truth : Math.abs(answer - truth) <= question.tolerance;

  function buildForm(box) {
    const question = JSON.parse(box.dataset.mbls);
    const lowest = question.options.length ? 1 / question.options.length : 0;
    const low = Math.round(100 * lowest);
    const form = element("form", { className: "mbls-form" });
    const name = `mbls-${question.id}`;
    let field;
    if (question.options.length) {
      field = element("fieldset", {}, element("legend", { textContent: "Your answer" }));
      question.options.forEach((option) => {
        const radio = element("input", { type: "radio", name, value: option });
        field.append(element("label", {}, radio, ` ${option}`));
      });
    } else {
      const number = element("input", { type: "text", inputMode: "decimal", name, size: 8 });
      const within = `${question.unit} (right if within ${question.tolerance})`.trim();
      field = element("label", {}, "Your answer: ", number, ` ${within}`);
    }
    const sure = element("input", { type: "range", min: low, max: 100, step: 1, value: low || 50 });
    const percent = element("span", { className: "mbls-value" });
    const button = element("button", { type: "submit", textContent: "Keep my prediction" });
    const message = element("div", { className: "mbls-message" });
    message.setAttribute("role", "status");
    const showSure = () => {
      percent.textContent = `${sure.value} %`;
      sure.setAttribute("aria-valuetext", percent.textContent);
    };
    sure.addEventListener("input", showSure);
    showSure();

    const show = () => {
      const stored = kept[question.id];
      if (!stored || stored.question !== question.wording) {
        message.textContent = "You may skip this.";
        return;
      }
      const locked = stored.truth !== null;
      [...form.elements].forEach((control) => { control.disabled = locked; });
      if (stored.answer === null) {
        message.textContent = "The answer has been shown: a prediction no longer counts.";
        return;
      }
      form.querySelectorAll("input[type=radio]").forEach((radio) => { radio.checked = radio.value === stored.answer; });
      form.querySelectorAll("input[type=text]").forEach((text) => { text.value = stored.answer; });
      sure.value = Math.round(100 * stored.confidence);
      showSure();
      const told = `${said(question, stored.answer)}, ${sure.value} % sure.`;
      message.textContent = locked ? `Locked: ${told}` : `Kept: ${told} You can change it until the answer is shown.`;
    };

    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const chosen = form.querySelector(question.options.length ? "input[type=radio]:checked" : "input[type=text]");
      const answer = question.options.length ? chosen?.value : Number((chosen.value || "x").replace(",", "."));
      if (answer === undefined || Number.isNaN(answer)) {
        message.textContent = question.options.length
          ? "Choose one of the answers first."
          : "A number is wanted here, such as 2.5.";
        return;
      }
      const confidence = Math.max(Number(sure.value) / 100, lowest);
      keep(question.id, { question: question.wording, answer, confidence, truth: null, right: null });
      show();
    });
    form.append(field, element("label", {}, "I am sure to ", sure, percent), button, message);
    box.querySelectorAll("ul, i").forEach((part) => part.remove());
    box.append(form);
    questions.set(question.id, { question, show });
    show();
  }

  function watchReveal(box) {
    const { id, question: wording, truth } = JSON.parse(box.dataset.mbls);
    const fold = box.closest("details");
    const compared = element("div", { className: "mbls-compared" });
    box.prepend(compared);
    const reveal = () => {
      const asked = questions.get(id);
      const stored = kept[id]?.question === wording ? kept[id] : null;
      if (!stored || stored.truth === null) {
        const answer = stored?.answer ?? null;
        const right = answer === null || !asked ? null : isRight(asked.question, answer, truth);
        keep(id, { question: wording, answer, confidence: stored?.confidence ?? null, truth, right });
      }
      const now = kept[id];
      compared.textContent = "You made no prediction here. That is fine; this question does not count.";
      if (now.answer !== null) {
        const told = `You said ${said(asked.question, now.answer)} and were ${Math.round(100 * now.confidence)} % sure`;
        compared.textContent = now.right ? `✓ ${told}: right.` : `✗ ${told}: not this time.`;
        box.classList.add(now.right ? "mbls-right" : "mbls-wrong");
      }
      asked?.show();
    };
    if (!fold || fold.open) reveal();
    else fold.addEventListener("toggle", () => fold.open && reveal());
  }

  /* Counts and quotients of the answers that were revealed: number, mean confidence, hit rate and Brier score, and of each
     bin its number, mean confidence and share of right answers. */
  function calibration(answers, edges) {
    const counted = Object.values(answers).filter((answer) => answer.right !== null);
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const inner = edges.slice(1, -1);
    const bins = edges.slice(1).map(() => []);
    counted.forEach((answer) => bins[inner.filter((edge) => edge < answer.confidence).length].push(answer));
    return {
      count: counted.length,
      confidence: mean(counted.map((answer) => answer.confidence)),
      hit_rate: mean(counted.map((answer) => Number(answer.right))),
      brier: mean(counted.map((answer) => (answer.confidence - Number(answer.right)) ** 2)),
      bins: bins.map((part) => ({
        count: part.length,
        confidence: part.length ? mean(part.map((answer) => answer.confidence)) : null,
        accuracy: part.length ? mean(part.map((answer) => Number(answer.right))) : null,
      })),
    };
  }
  window.mblsCalibration = calibration;

  function drawMine(box) {
    const { fewest, edges } = JSON.parse(box.dataset.mbls);
    const found = calibration(kept, edges);
    if (found.count < fewest) {
      box.textContent =
        `Your own reliability diagram stands here once ${fewest} of your predictions have been revealed (so far: ${found.count}).`;
      return;
    }
    const points = Math.round(100 * Math.abs(found.confidence - found.hit_rate));
    const verdict = points === 0 ? "neither over- nor underconfident"
      : `${found.confidence > found.hit_rate ? "over" : "under"}confident by ${points} points`;
    const text = `${found.count} predictions: ${Math.round(100 * found.confidence)} % sure on average, right in `
      + `${Math.round(100 * found.hit_rate)} %. You were ${verdict}. Brier score ${found.brier.toFixed(2)}.`;
    const svg = (name, attributes, content = "") => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
      made.textContent = content;
      return made;
    };
    const at = (x, y) => [50 + 280 * x, 310 - 280 * y];
    const picture = svg("svg", { viewBox: "0 0 350 360", role: "img", class: "mbls-diagram" });
    picture.setAttribute("aria-label", text);
    const [left, bottom] = at(0, 0);
    const [right, top] = at(1, 1);
    picture.append(svg("rect", { x: left, y: top, width: 280, height: 280, class: "frame" }));
    picture.append(svg("line", { x1: left, y1: bottom, x2: right, y2: top, class: "guide" }));
    [0, 0.5, 1].forEach((tick) => {
      picture.append(svg("text", { x: at(tick, 0)[0], y: bottom + 16, "text-anchor": "middle" }, tick));
      picture.append(svg("text", { x: left - 6, y: at(0, tick)[1] + 4, "text-anchor": "end" }, tick));
    });
    picture.append(svg("text", { x: 190, y: 345, "text-anchor": "middle" }, "how sure"));
    picture.append(svg("text", { x: 16, y: 170, "text-anchor": "middle", transform: "rotate(-90 16 170)" }, "how often right"));
    found.bins.filter((bin) => bin.count).forEach((bin) => {
      const [x, y] = at(bin.confidence, bin.accuracy);
      picture.append(svg("circle", { cx: x, cy: y, r: 6, class: "point" }));
      picture.append(svg("text", { x: x + 10, y: y + 4 }, bin.count));
    });
    const file = new Blob([JSON.stringify(kept, null, 1)], { type: "application/json" });
    const save = element("a", { download: "my_predictions.json", textContent: "Save my answers as a file" });
    save.href = URL.createObjectURL(file);
    box.replaceChildren(element("p", { textContent: text }), picture, element("p", {}, save));
  }

  document.querySelectorAll(".mbls-ask").forEach(buildForm);
  document.querySelectorAll(".mbls-reveal").forEach(watchReveal);
  document.querySelectorAll(".mbls-mine").forEach(drawMine);
})();
