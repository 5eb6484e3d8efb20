/* Two distributions with sliders. Without scripts, each `div.sliders` shows its figure instead. */
"use strict";

const term = (p, q) => (p === 0 ? 0 : p * Math.log(p / q));

// Each divergence by its terms, one per category; their sum is the divergence in nats.
const TERMS = {
  kl: (p, q) => term(p, q),
  reverse_kl: (p, q) => term(q, p),
  js: (p, q) => (term(p, (p + q) / 2) + term(q, (p + q) / 2)) / 2,
};

const sum = (values) => values.reduce((total, value) => total + value, 0);
const words = (text) => text.split(" ");
const nats = (value) => (value === Infinity ? "∞" : value.toFixed(4).replace("-", "\u2212"));
const share = (value) => (value > 0 && value < 0.005 ? "<0.01" : value.toFixed(2));

/** Say in words what a divergence of `label` from `pred` means, and which category adds most to it. */
function meaning(divergence, names, categories, shares) {
  const [label, pred] = names;
  const terms = categories.map((_, i) => TERMS.kl(shares[0][i], shares[1][i]));
  const most = categories[terms.indexOf(Math.max(...terms))];
  if (divergence === Infinity) {
    return `${pred} gives ${most} the probability 0, but ${label} does not: the divergence is infinite.`;
  }
  if (divergence < 0.00005) {
    return `${label} and ${pred} are equal: the divergence is 0.`;
  }
  return `On average, ${pred} gives ${Math.exp(-divergence).toFixed(2)} times as much probability as ${label} `
    + `to what happens under ${label}. Most of the divergence comes from ${most}.`;
}

/** Set one share of a distribution: the others keep their proportions, and the total is 1. */
function moved(shares, place, value) {
  const others = sum(shares) - shares[place];
  const spread = (old) => (1 - value) * (others > 0 ? old / others : 1 / (shares.length - 1));
  return shares.map((old, i) => (i === place ? value : spread(old)));
}

class Sliders {
  constructor(holder) {
    const { categories, label, pred, names, terms } = holder.dataset;
    this.holder = holder;
    this.categories = words(categories);
    this.start = [words(label).map(Number), words(pred).map(Number)];
    this.names = words(names);
    this.terms = words(terms);
    holder.querySelectorAll("img").forEach((still) => { still.hidden = true; });
    holder.insertAdjacentHTML("beforeend", this.markup());
    this.inputs = [0, 1].map((side) => [...holder.querySelectorAll(`input[data-side="${side}"]`)]);
    this.inputs.forEach((inputs, side) => inputs.forEach((input, place) =>
      input.addEventListener("input", () => this.move(side, place, Number(input.value)))));
    holder.querySelector("[data-do=swap]").addEventListener("click", () => this.show([...this.shares].reverse()));
    holder.querySelector("[data-do=reset]").addEventListener("click", () => this.show(this.start));
    this.show(this.start);
  }

  title(divergence) {
    const [p, q] = this.names;
    return { kl: `KL(${p} ‖ ${q})`, reverse_kl: `KL(${q} ‖ ${p})`, js: "Jensen-Shannon",
             mean: `KL(${p} ‖ ${q}) / ${this.categories.length}` }[divergence];
  }

  markup() {
    const slider = (side, name, category) => `
      <span class="sliders-bar sliders-side-${side}"><span class="sliders-fill"></span>
        <input type="range" min="0" max="1" step="0.01" data-side="${side}" aria-label="${category}, ${name}"></span>
      <span class="sliders-share"></span>`;
    const lane = (divergence) => `
      <span class="sliders-lane" data-term="${divergence}"><span class="sliders-fill"></span></span>
      <span class="sliders-value"></span>`;
    const rows = this.categories.map((category) => `
      <div class="sliders-row">
        <span class="sliders-name">${category}</span>
        <div class="sliders-shares">${this.names.map((name, side) => slider(side, name, category)).join("")}</div>
        <div class="sliders-terms">${this.terms.map(lane).join("")}</div>
      </div>`).join("");
    const results = ["kl", "reverse_kl", "js", "mean"].map((divergence) => `
      <div><dt>${this.title(divergence)}</dt><dd data-result="${divergence}"></dd></div>`).join("");
    return `
      <div class="sliders-tool" role="group" aria-label="Two distributions to move">
        <div class="sliders-results"><dl>${results}</dl><p class="sliders-words" role="status"></p></div>
        <div class="sliders-row sliders-head">
          <span></span>
          <div>Probability, from 0 to 1:
            ${this.names.map((name, side) => `<span class="sliders-key sliders-side-${side}">${name}</span>`).join("")}
          </div>
          <div>Nats that the category adds to
            ${this.terms.map((divergence) =>
              `<span class="sliders-key" data-term="${divergence}">${this.title(divergence)}</span>`).join("")}
          </div>
        </div>
        ${rows}
        <p class="sliders-buttons">
          <button type="button" data-do="swap">Swap ${this.names.join(" and ")}</button>
          <button type="button" data-do="reset">Start again</button>
        </p>
      </div>`;
  }

  /** Follow a slider. The others keep the proportions that they had before its first move, also after a visit to 1. */
  move(side, place, value) {
    const same = this.held && this.held.side === side && this.held.place === place;
    const held = same ? this.held : { side, place, shares: this.shares[side] };
    this.show(this.shares.map((shares, i) => (i === side ? moved(held.shares, place, value) : shares)));
    this.held = held;
  }

  show(shares) {
    this.shares = shares;
    this.held = null;
    const [p, q] = shares;
    this.inputs.forEach((inputs, side) => inputs.forEach((input, place) => {
      const value = shares[side][place];
      input.value = value.toFixed(2);
      input.setAttribute("aria-valuetext", share(value));
      input.previousElementSibling.style.width = `${100 * value}%`;
      input.parentElement.nextElementSibling.textContent = share(value);
    }));
    const results = {};
    for (const [divergence, formula] of Object.entries(TERMS)) {
      const terms = p.map((_, i) => formula(p[i], q[i]));
      results[divergence] = Math.max(sum(terms), 0);
      this.holder.querySelectorAll(`.sliders-lane[data-term=${divergence}]`)
        .forEach((lane, i) => this.draw(lane, terms[i]));
    }
    results.mean = results.kl / p.length;
    for (const [divergence, value] of Object.entries(results)) {
      this.holder.querySelector(`[data-result=${divergence}]`).textContent = nats(value);
    }
    this.holder.querySelector(".sliders-words").textContent =
      meaning(results.kl, this.names, this.categories, shares);
  }

  /** Draw a term as a bar from 0. A lane is 1.2 nats long, and 0 lies at a third of it: no term is below -1/e. */
  draw(lane, value) {
    const zero = 1 / 3;
    const end = Math.min(zero + value / 1.2, 1);
    const bar = lane.firstElementChild;
    bar.style.left = `${100 * Math.min(end, zero)}%`;
    bar.style.width = `${100 * Math.abs(end - zero)}%`;
    lane.classList.toggle("sliders-beyond", value > 0.8);
    lane.nextElementSibling.textContent = nats(value);
  }
}

document.querySelectorAll("div.sliders").forEach((holder) => new Sliders(holder));
