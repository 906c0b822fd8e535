// Draws one list: places, movements, and what each objective adds to a score. Texts of users and
// items are data, so nothing here is ever parsed as HTML.

const MARKS = ["■", "●", "▲", "◆", "✚", "★"]; // the second channel beside the colours

/** Mark and class of the objective at a place of the funnel. */
export const mark = (index) => ({ sign: MARKS[index % MARKS.length], style: `k${index % MARKS.length}` });

export const nameOf = (item) => item.title || item.id;

/** item id -> place, counted from 1 */
export const placesOf = (answer) => new Map(answer.items.map((item, at) => [item.id, at + 1]));

/** The largest negative and positive sum of contributions, so that bars can share one scale. */
export function extentOf(answers) {
  let below = 0;
  let above = 0;
  for (const { items } of answers) {
    for (const { contributions } of items) {
      below = Math.max(below, sum(contributions.filter((value) => value < 0).map(Math.abs)));
      above = Math.max(above, sum(contributions.filter((value) => value > 0)));
    }
  }
  return { below, above };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const minus = (text) => text.replace("-", "−");

function element(tag, style, ...content) {
  const made = document.createElement(tag);
  if (style) made.className = style;
  made.append(...content);
  return made;
}

function button(sign, said, style, act) {
  const made = element("button", style, element("span", "", sign));
  made.type = "button";
  made.setAttribute("aria-label", said);
  made.title = said;
  made.firstChild.setAttribute("aria-hidden", "true");
  made.addEventListener("click", act);
  return made;
}

export class List {
  /**
   * @param {Element} parent gets the list
   * @param {{version: (value: string) => void, exclude: (item) => void, add: (item) => void}} on
   */
  constructor(parent, on) {
    this.on = on;
    this.section = document.getElementById("list-template").content.cloneNode(true).firstElementChild;
    this.part = (name) => this.section.querySelector(`.${name}`);
    this.rows = new Map();
    this.part("version").addEventListener("change", (event) => on.version(event.target.value));
    parent.append(this.section);
  }

  /** What the list is an answer of; `chosen` is null for the newest version. */
  versions(versions, newest, chosen) {
    const select = this.part("version");
    const entries = versions.map(({ version, served }) => [
      String(version),
      `Version ${version}${served ? "" : ", on disk"}`,
    ]);
    if (chosen !== null && !versions.some(({ version }) => version === chosen)) {
      entries.push([String(chosen), `Version ${chosen}, gone`]);
    }
    entries.unshift(["", `Newest (${newest})`]);
    const text = JSON.stringify(entries);
    if (select.dataset.entries !== text) {
      select.dataset.entries = text;
      select.replaceChildren(...entries.map(([value, label]) => new Option(label, value)));
    }
    select.value = chosen === null ? "" : String(chosen);
  }

  /** Says why there is no new list, calmly if that is a matter of time; what was drawn before stays, greyed. */
  trouble(text, version, calm = false) {
    const line = this.part("trouble");
    line.classList.toggle("calm", calm);
    line.hidden = !text;
    line.replaceChildren(text);
    if (text && version !== null) this.link(version);
    this.stale(Boolean(text));
  }

  stale(is) {
    this.section.classList.toggle("stale", is);
    this.section.setAttribute("aria-busy", String(is));
  }

  link(version) {
    const link = this.part("lineage");
    link.href = `/lineage/${version}`;
    link.textContent = `Lineage of version ${version}`;
  }

  /**
   * @param answer of /api/recommend
   * @param {{objectives: string[], extent, before: ?Map, other: ?{version: number, places: Map},
   *   left: (id: string) => string, addable: boolean, milliseconds: number}} context
   * @returns {string} what has changed, in words
   */
  draw(answer, context) {
    this.trouble("", null);
    this.link(answer.version);
    this.section.setAttribute("aria-label", `List of version ${answer.version}`);
    this.part("answered").textContent = `answered by version ${answer.version}`;
    this.part("calls").textContent = [
      ...answer.calls.map(({ signature, ms }) => `${signature} ${ms.toFixed(1)} ms`),
      `in all ${context.milliseconds.toFixed(1)} ms`,
    ].join(" · ");
    const focused = document.activeElement;
    const list = this.part("items");
    const kept = new Map();
    answer.items.forEach((item, at) => {
      const row = this.rows.get(item.id) ?? this.row(item);
      kept.set(item.id, row);
      this.fill(row, item, at + 1, answer, context);
      if (list.children[at] !== row.li) list.insertBefore(row.li, list.children[at] ?? null);
    });
    for (const [id, row] of this.rows) if (!kept.has(id)) row.li.remove();
    this.rows = kept;
    // A row that moves loses the focus.
    if (focused !== document.activeElement && list.contains(focused)) focused.focus({ preventScroll: true });
    return this.tell(answer, context);
  }

  row(item) {
    const li = document.getElementById("row-template").content.cloneNode(true).firstElementChild;
    li.dataset.item = item.id;
    const part = (name) => li.querySelector(`.${name}`);
    part("title").textContent = nameOf(item);
    part("id").textContent = item.title ? item.id : "";
    const add = button("+", `Add to the history: ${nameOf(item)}`, "add", () => this.on.add(item));
    const drop = button("×", `Exclude: ${nameOf(item)}`, "drop", () => this.on.exclude(item));
    part("do").append(add, drop);
    const row = { li, add, drop, bar: part("bar"), shares: part("shares"), score: li.querySelector("b") };
    for (const name of ["rank", "move", "sign", "said", "badges"]) row[name] = part(name);
    return row;
  }

  fill(row, item, place, answer, { objectives, extent, before, other, addable }) {
    row.rank.textContent = place;
    const [style, sign, said] = movement(before, item.id, place);
    row.move.className = `move ${style}`;
    row.sign.textContent = sign;
    row.said.textContent = said;
    row.score.textContent = minus(item.score.toFixed(2));
    row.add.hidden = !addable;
    row.drop.hidden = item.seen; // it comes from the history
    const badges = [];
    if (item.seen) badges.push(element("span", "badge", "seen"));
    if (other) {
      const there = other.places.get(item.id);
      const text = there ? `#${there} in version ${other.version}` : `not in version ${other.version}`;
      badges.push(element("span", there ? "badge other" : "badge other only", text));
    }
    row.badges.replaceChildren(...badges);
    this.share(row, item, answer.objectives, objectives, extent);
  }

  // A bar from the zero line to both sides, and the same as text.
  share(row, { contributions }, names, objectives, { below, above }) {
    const whole = below + above || 1;
    const size = sum(contributions.map(Math.abs)) || 1;
    let left = below;
    let right = below;
    const segments = [];
    const texts = [];
    contributions.forEach((value, at) => {
      const { sign, style } = mark(objectives.indexOf(names[at]));
      if (value) {
        const segment = element("span", style);
        if (value < 0) left += value;
        segment.style.left = `${(100 * (value < 0 ? left : right)) / whole}%`;
        segment.style.width = `${(100 * Math.abs(value)) / whole}%`;
        if (value > 0) right += value;
        segments.push(segment);
      }
      const signed = element("span", `mark ${style}`, sign);
      signed.setAttribute("aria-hidden", "true");
      const share = Math.round((100 * value) / size) || 0; // no −0
      texts.push(
        element(
          "li",
          "",
          signed,
          ` ${names[at]} `,
          element("b", "", minus(`${share} %`)),
          element("span", "adds", minus(` ${value.toFixed(2)}`)),
        ),
      );
    });
    if (below) {
      const zero = element("span", "zero");
      zero.style.left = `${(100 * below) / whole}%`;
      segments.push(zero);
    }
    row.bar.replaceChildren(...segments);
    row.shares.replaceChildren(...texts);
  }

  tell(answer, { before, left }) {
    const line = this.part("moves");
    const count = answer.items.length;
    const notes = answer.history_told
      ? ""
      : ` Seen items cannot be shown: version ${answer.version} does not tell stored histories.`;
    let text = count ? `${count} items` : "No item is left for this list.";
    if (before) {
      const now = placesOf(answer);
      let up = 0;
      let down = 0;
      let fresh = 0;
      for (const [id, place] of now) {
        const was = before.get(id);
        if (was === undefined) fresh++;
        else if (was > place) up++;
        else if (was < place) down++;
      }
      const gone = [...before.keys()].filter((id) => !now.has(id)).map(left);
      const parts = [`▲ ${up} up`, `▼ ${down} down`, `${fresh} new`];
      text = up + down + fresh + gone.length ? parts.join(" · ") : "No item has moved";
      if (gone.length) {
        text += ` · left: ${gone.slice(0, 3).join("; ")}`;
        if (gone.length > 3) text += ` and ${gone.length - 3} more`;
      }
    }
    if (!answer.weights.some(Boolean)) text += " · All weights are 0: the order means nothing.";
    line.textContent = text + notes;
    return text + notes;
  }

  remove() {
    this.section.remove();
  }
}

function movement(before, id, place) {
  if (!before) return ["", "", ""];
  const was = before.get(id);
  if (was === undefined) return ["new", "new", "new in the list"];
  if (was > place) return ["up", `▲${was - place}`, `up ${was - place}`];
  if (was < place) return ["down", `▼${place - was}`, `down ${place - was}`];
  return ["", "", ""];
}
