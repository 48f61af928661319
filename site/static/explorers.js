"use strict";
/* Explorers without a kernel. Python has drawn a picture and written a sentence for every position of the sliders
   (mbls.course.static); this script shows those of the position that the reader chooses. It computes nothing. */
(() => {
  const base = document.currentScript.src.replace(/explorers\.js.*$/, "explorers/");
  const waiting = new Map();

  // Each explorers/KEY.js calls this. A script and not a fetched file, since pages opened from a disk may not fetch.
  window.mblsExplorer = (key, page) => waiting.get(key).forEach((image) => build(image, key, page));

  function load(image) {
    const key = image.dataset.explorer;
    if (waiting.has(key)) {
      waiting.get(key).push(image);
      return;
    }
    waiting.set(key, [image]);
    const script = document.createElement("script");
    script.src = `${base}${key}.js`;
    document.head.append(script);
  }

  function build(image, key, page) {
    const live = document.createElement("div");
    live.className = "mbls-live";
    image.before(live);
    const readout = document.createElement("output");
    readout.className = "mbls-readout";
    readout.setAttribute("aria-live", "polite");
    const place = page.sliders.map((slider) => slider.start);
    const address = (where) => `${base}${key}/${where.join("-")}.webp`;

    const show = () => {
      const where = place.join("-");
      image.src = address(place);
      image.alt = `${page.alt} ${page.told[where]}`;
      readout.textContent = page.told[where];
    };

    page.sliders.forEach((slider, number) => {
      const label = document.createElement("label");
      const name = document.createElement("span");
      name.textContent = slider.label;
      const range = document.createElement("input");
      Object.assign(range, { type: "range", min: 0, max: slider.texts.length - 1, step: 1, value: slider.start });
      const value = document.createElement("span");
      value.className = "mbls-value";
      const move = () => {
        place[number] = Number(range.value);
        value.textContent = slider.texts[place[number]];
        range.setAttribute("aria-valuetext", slider.texts[place[number]]);
      };
      move();
      range.addEventListener("input", () => {
        move();
        show();
        // The neighbours, so that the next step shows at once.
        [-1, 1].forEach((step) => {
          const next = place.map((at, index) => (index === number ? at + step : at));
          if (page.told[next.join("-")]) new Image().src = address(next);
        });
      });
      label.append(name, range, value);
      live.append(label);
    });
    image.removeAttribute("style");
    image.width = page.width;
    image.height = page.height;
    live.append(image, readout);
    show();
  }

  const seen = new IntersectionObserver(
    (entries) =>
      entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
        seen.unobserve(entry.target);
        load(entry.target);
      }),
    { rootMargin: "600px" },
  );
  document.querySelectorAll("img.mbls-explorer[data-explorer]").forEach((image) => seen.observe(image));
})();
